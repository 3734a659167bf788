"""What sound is taught to mean: the shape of lips, in units of all clips, and the motion of the picture."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import NothingToGive, TrainingError
from fedtalk_ray.media.lips import lip_motion
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.recipe import PhaseRounds, SpeechConfig
from fedtalk_ray.shards.people import People
from fedtalk_ray.slot_settings import StreamConfig
from fedtalk_ray.training.phases.module_steps import ModuleSteps
from fedtalk_ray.training.phases.speech import check_sound, speech_phase
from fedtalk_ray.training.phases.units import moments, set_units


@pytest.fixture(scope="module")
def people(make_shards: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> People:
    """Two people whose mouths open, and whose pictures change, with their loudness."""
    folder: Path = tmp_path_factory.mktemp("speech") / "shards"
    return People(folder, make_shards(folder, {"s1": [40] * 4, "s2": [40] * 4}))


@pytest.fixture
def denoiser(people: People, make_denoiser: Callable[..., TalkingHeadDenoiser]) -> TalkingHeadDenoiser:
    made = make_denoiser(awake=False, latent_channels=16)
    set_units(made, moments((piece for who in ("s1", "s2") for piece in people.pieces(who, "train")), made))
    return made


def phase_of(denoiser: TalkingHeadDenoiser, **more: Any) -> ModuleSteps:
    return speech_phase(denoiser, SpeechConfig(**{"rounds": 1, "steps": 3} | more), StreamConfig(), 1.0)


def test_speech_motion_learns_and_the_u_net_is_not_touched(people: People, denoiser, all_rounds) -> None:
    """Both what it is taught: the picture of the motion, and the lip shapes as the code's first numbers."""
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    pieces = list(people.pieces("s1", "train"))
    sound, latents = (
        torch.cat([torch.from_numpy(part.astype(np.float32)) for part in column])[None]
        for column in zip(*((p.speech, p.latents - p.latents.astype(np.float32).mean(0)) for p in pieces), strict=True)
    )
    target = latents / denoiser.residual_std[:, None, None]
    shapes = denoiser.lip_shape(torch.cat([torch.from_numpy(lip_motion(piece.landmarks)) for piece in pieces]))

    def errors() -> tuple[float, float]:
        denoiser.eval()
        with torch.no_grad():
            # The first two numbers are what the mouth does; the others are the landmarks' unrest.
            heard = denoiser.speech_encoder(sound)[0, :, :2] - shapes[:, :2]
            return float((denoiser.speech_motion(sound) - target).square().mean()), float(heard.square().mean())

    start = errors()
    answers = all_rounds(phase_of(denoiser, rounds=2, steps=20, batch_size=12, learning_rate=4e-3), people, 2)
    assert errors()[0] < 0.95 * start[0] and errors()[1] < 0.5 * start[1]
    assert answers[-1].losses["lips"] < answers[0].losses["lips"]
    changed = {name for name, value in denoiser.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("speech_encoder.", "speech_map.")) for name in changed)
    assert not denoiser.training and not any(parameter.requires_grad for parameter in denoiser.parameters())


def test_the_losses_are_the_errors_of_shapes_and_motion(people: People, denoiser, make_task, monkeypatch) -> None:
    """Of an untrained map whose weights are zero: the mean square of what is to be learned."""
    monkeypatch.setattr("fedtalk_ray.training.phases.speech.vary_speech", lambda speech, *_: speech)
    for parameter in (*denoiser.speech_map.parameters(), *denoiser.speech_encoder.linear1.parameters()):
        parameter.data.zero_()
    phase = speech_phase(denoiser, SpeechConfig(steps=1, batch_size=111), StreamConfig(), 1.0)
    losses = phase.fit(make_task(people, phase.initial())).losses
    pieces = list(people.pieces("s1", "train"))
    residuals = np.concatenate([p.latents.astype(float) - p.latents.astype(float).mean(0) for p in pieces])
    shapes = torch.cat([denoiser.lip_shape(torch.from_numpy(lip_motion(piece.landmarks))) for piece in pieces])
    # A sample of 444 of frames, each window at a random place: near the mean over all of them. A channel counts by its
    # spread s, so that (r / s) squared times s is r squared over s.
    spread = denoiser.residual_std.numpy()[:, None, None]
    assert losses["motion"] == pytest.approx(float((residuals**2 / spread).mean() / spread.mean()), rel=0.15)
    assert losses["lips"] == pytest.approx(float(shapes.square().mean()), rel=0.15)


def test_a_seed_means_the_same_update_whatever_came_before(people: People, denoiser, make_task) -> None:
    phase = phase_of(denoiser, steps=1)
    shared = phase.initial()
    first = phase.fit(make_task(people, shared, seed=3)).update
    torch.manual_seed(99)
    phase.fit(make_task(people, shared, client="s2", seed=4))
    assert phase.fit(make_task(people, shared, seed=3)).update.tobytes() == first.tobytes()
    assert phase.fit(make_task(people, shared, seed=5)).update.tobytes() != first.tobytes()


def test_windows_without_any_sound_teach_nothing() -> None:
    """Told by the sound as it is stored: varied, even silence is noise."""
    check_sound(torch.randn(2, 4, 44, 40))
    with pytest.raises(NothingToGive, match="its clips are silent"):
        check_sound(torch.full((2, 4, 44, 40), -4.0))


def test_an_update_that_is_not_finite_does_not_leave_the_client(people: People, denoiser, make_task) -> None:
    phase = speech_phase(denoiser, SpeechConfig(steps=2, learning_rate=1e30), StreamConfig(), 1.0)
    task = replace(make_task(people, phase.initial()), phase=PhaseRounds("speech", 1, 1))
    with pytest.raises(TrainingError, match=r"not finite; lower speech\.learning_rate"):
        phase.fit(task)
