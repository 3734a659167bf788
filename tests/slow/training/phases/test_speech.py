"""What sound is taught to mean: the shape of lips, in units of all clips, and the motion of the picture."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import NothingToGive, TrainingError
from fedtalk_ray.media.lips import MIRRORED, lip_motion
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.recipe import PhaseRounds, SpeechConfig
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.shards.people import People
from fedtalk_ray.slot_settings import StreamConfig
from fedtalk_ray.training.phases.module_steps import ModuleSteps
from fedtalk_ray.training.phases.speech import check_sound, speech_phase
from fedtalk_ray.training.phases.units import moments, set_units

EMPTY = np.zeros(0)


def mouth(opening: np.ndarray, crooked: np.ndarray, shift: float) -> np.ndarray:
    """68 landmarks of each frame: eyes 0.4 apart, an ellipse of lips that opens, and moves to one side."""
    points = np.zeros((len(opening), 68, 2))
    points[:, 36:42], points[:, 42:48] = (0.3, 0.3), (0.7, 0.3)
    outer = np.pi - np.arange(12) * np.pi / 6
    inner = np.pi - np.arange(8) * np.pi / 4
    for index, (gap, side) in enumerate(zip(opening, crooked, strict=True)):
        for angles, part, width in ((outer, slice(48, 60), 0.12), (inner, slice(60, 68), 0.08)):
            points[index, part, 0] = 0.5 + shift + side + width * np.cos(angles)
            points[index, part, 1] = 0.7 - gap * np.sin(angles)
    return points


Measured = tuple[list[np.ndarray], list[np.ndarray]]


@pytest.fixture
def measured(make_denoiser: Callable[..., TalkingHeadDenoiser]) -> Callable[..., Measured]:
    """How far two clips' mouths open, and their lip shapes, in units that are fixed by both."""

    def measure(crooked: float = 0.0) -> Measured:
        rng = np.random.default_rng(0)
        opening = [rng.uniform(0, 0.1, 30), rng.uniform(0.02, 0.05, 20)]
        points = [mouth(gap, rng.normal(0, crooked, len(gap)), 0.05 * clip) for clip, gap in enumerate(opening)]
        denoiser = make_denoiser(lip_numbers=3)
        latents = [rng.normal(size=(len(gap), 4, 8, 8)).astype(np.float16) for gap in opening]
        set_units(
            denoiser,
            moments(
                Piece("s1", str(clip), 0, EMPTY, seen, EMPTY, EMPTY, landmarks=found)
                for clip, (seen, found) in enumerate(zip(latents, points, strict=True))
            ),
        )
        return opening, [denoiser.lip_shape(torch.from_numpy(lip_motion(found))).numpy() for found in points]

    return measure


def test_the_first_number_is_the_aperture_in_standard_deviations(measured) -> None:
    opening, shapes = measured()
    raw = np.concatenate(opening)
    for gap, shape in zip(opening, shapes, strict=True):
        assert shape.shape == (len(gap), 3) and shape.dtype == np.float32
        np.testing.assert_allclose(shape[:, 0], (gap - raw.mean()) / raw.std(), atol=1e-4)


def test_the_second_is_the_largest_variation_around_each_clips_own_mean(measured) -> None:
    opening, shapes = measured()
    for gap, shape in zip(opening, shapes, strict=True):
        assert abs(np.corrcoef(gap, shape[:, 1])[0, 1]) == pytest.approx(1, abs=1e-6)
        assert shape[:, 1].mean() == pytest.approx(0, abs=1e-5), "where the mouth sits is taken out"
    assert np.concatenate(shapes)[:, 1].std() == pytest.approx(1, abs=1e-4)


def test_what_is_not_even_left_and_right_does_not_show(measured) -> None:
    """A mirrored picture has the same lip shape: moving to one side is no shape."""
    for straight, moved in zip(measured()[1], measured(crooked=0.02)[1], strict=True):
        np.testing.assert_allclose(moved[:, :2], straight[:, :2], atol=1e-4)


def test_the_mirror_maps_points_onto_points_of_the_other_side() -> None:
    points = mouth(np.array([0.05]), np.array([0.0]), 0.0)[0, 48:68] - (0.5, 0.7)
    np.testing.assert_allclose(points[MIRRORED] * (-1, 1), points, atol=1e-12)
    assert [MIRRORED[index] for index in MIRRORED] == list(range(20))


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


def phase_of(denoiser: TalkingHeadDenoiser, rounds: int = 1, steps: int = 3) -> ModuleSteps:
    return speech_phase(denoiser, SpeechConfig(rounds=rounds, steps=steps), StreamConfig(), 1.0)


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
    answers = all_rounds(phase_of(denoiser, rounds=4, steps=45), people, 4)
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


def test_who_bends_learns_lip_shapes_alone(people: People, denoiser, make_task) -> None:
    """The map to motion, which is never shown, is neither trained nor sent."""
    motion = phase_of(denoiser)
    denoiser.bend_latents(4, 2, 1)
    shapes = phase_of(denoiser)
    encoder = sum(each.numel() for each in denoiser.speech_encoder.parameters())
    assert motion.initial().size > shapes.initial().size == encoder
    before = {name: value.clone() for name, value in denoiser.speech_map.state_dict().items()}
    fitted = shapes.fit(make_task(people, shapes.initial()))
    assert set(fitted.losses) == {"lips"} and fitted.update.any()
    assert all(torch.equal(value, before[name]) for name, value in denoiser.speech_map.state_dict().items())


def test_dropout_is_the_settings_and_in_training_alone(people: People, denoiser, make_task) -> None:
    encoder, sound, seen = denoiser.speech_encoder, next(people.pieces("s1", "train")).speech, []
    hook = encoder.register_forward_pre_hook(lambda _, given: seen.append((encoder.training, given[1])))
    phase = speech_phase(denoiser, SpeechConfig(steps=2, dropout=0.3), StreamConfig(), 1.0)
    phase.fit(make_task(people, phase.initial()))
    hook.remove()
    assert seen == [(True, 0.3)] * 2
    windows = torch.from_numpy(sound.astype(np.float32))[None]
    still = encoder.eval()(windows)
    assert torch.equal(encoder(windows, 0.3), still)
    encoder.train()
    assert torch.equal(encoder(windows, 0.0), still) and not torch.equal(encoder(windows), still)
    assert not torch.equal(encoder(windows, 0.3), still)


def test_a_seed_means_the_same_update_whatever_came_before(people: People, denoiser, make_task) -> None:
    phase = phase_of(denoiser)
    shared = phase.initial()
    first = phase.fit(make_task(people, shared, seed=3)).update
    torch.manual_seed(99)
    phase.fit(make_task(people, shared, client="s2", seed=4))
    assert phase.fit(make_task(people, shared, seed=3)).update.tobytes() == first.tobytes()
    assert phase.fit(make_task(people, shared, seed=5)).update.tobytes() != first.tobytes()


def test_windows_without_any_sound_teach_nothing(people: People, denoiser, make_task) -> None:
    """Told by the sound as it is stored: varied, even silence is noise."""
    check_sound(torch.randn(2, 4, 44, 40))
    with pytest.raises(NothingToGive, match="its clips are silent"):
        check_sound(torch.full((2, 4, 44, 40), -4.0))

    class Silent(People):
        def batches(self, *args: Any, **more: Any) -> Any:
            return (replace(batch, speech=batch.speech * 0) for batch in super().batches(*args, **more))

    phase = phase_of(denoiser)
    silent = Silent(people.shards, people.manifest)
    with pytest.raises(NothingToGive, match="its clips are silent"):
        phase.fit(make_task(silent, phase.initial()))


def test_an_update_that_is_not_finite_does_not_leave_the_client(people: People, denoiser, make_task) -> None:
    phase = speech_phase(denoiser, SpeechConfig(steps=2, learning_rate=1e30), StreamConfig(), 1.0)
    task = replace(make_task(people, phase.initial()), phase=PhaseRounds("speech", 1, 1))
    with pytest.raises(TrainingError, match=r"not finite; lower speech\.learning_rate"):
        phase.fit(task)


def test_all_clients_must_have_in_common_what_is_not_shared(people: People, denoiser, make_task) -> None:
    """The U-Net and the units; not what the phase itself moves."""
    phase = phase_of(denoiser)
    before = phase.frozen()
    phase.fit(make_task(people, phase.initial()))
    assert phase.frozen() == before
    denoiser.lip_std[0] += 1
    assert phase.frozen() != before
