"""What the denoiser is shown: windows of the client's own clips, varied or not, most of them with their lip shapes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import NothingToGive, ShardError
from fedtalk_ray.media.lips import lip_motion
from fedtalk_ray.media.speech import LogMel
from fedtalk_ray.model import adapters
from fedtalk_ray.model.autoencoder import encode_frames, frames_to_pixels
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.shards.people import People
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.backbone import untrained_pipeline
from fedtalk_ray.training.local import LocalTrainer
from fedtalk_ray.training.phases.faces import Faces
from fedtalk_ray.training.phases.phase import Fitted
from fedtalk_ray.training.phases.units import moments, set_units


@pytest.fixture(scope="module")
def people(make_shards: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> People:
    folder: Path = tmp_path_factory.mktemp("faces") / "shards"
    return People(folder, make_shards(folder, {"s1": [20] * 5, "s2": [20] * 3}))


@pytest.fixture(scope="module")
def pieces(people: People) -> list[Piece]:
    """The clips that s1 trains on."""
    return list(people.pieces("s1", "train"))


class Watched(LocalTrainer):
    """Keeps what it is given to train on, and trains on none of it."""

    def fit(self, shared: np.ndarray, identity: Any, batches: Any, *rest: Any, **more: Any) -> Fitted:
        self.seen: list[WindowBatch] = list(batches)
        self.told = more
        return Fitted(np.zeros_like(shared))

    def windows(self) -> WindowBatch:
        parts = [vars(batch) for batch in self.seen]
        return WindowBatch(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


Shown = Callable[..., tuple[Watched, WindowBatch]]


@pytest.fixture
def shown(people: People, pieces: list[Piece], make_config: Callable[..., Any], make_task: Callable[..., Any]) -> Shown:
    """A trainer, and all windows that s1 would train on in one round."""

    def show(
        lips: bool = True, among: People = people, number: int = 1, rounds: int = 1, **local: Any
    ) -> tuple[Watched, WindowBatch]:
        config = make_config(local={"steps": 25, "batch_size": 4, "identity_steps": 0, "vary": True} | local)
        torch.manual_seed(0)
        pipeline = untrained_pipeline(people.manifest, widths=(16, 32), window=4)
        if lips:
            set_units(pipeline.denoiser, moments(pieces))
        trainer = Watched(pipeline, config)
        phase = Faces(trainer, config)
        phase.fit(make_task(among, phase.initial(), number, rounds))
        return trainer, trainer.windows()

    return show


def places(pictures: list[np.ndarray], windows: torch.Tensor) -> list[tuple[int, int]]:
    """(clip, frame) at which each window begins; an error for one that is nowhere, or in two places."""
    found = []
    for window in windows.numpy():
        (place,) = [
            (clip, begin)
            for clip, frames in enumerate(pictures)
            for begin in range(len(frames) - 3)
            if np.allclose(frames[begin : begin + 4], window, atol=2e-3)
        ]
        found.append(place)
    return found


@pytest.mark.parametrize("vary", [True, False])
def test_windows_are_of_the_clients_own_clips(shown: Shown, pieces: list[Piece], monkeypatch, vary: bool) -> None:
    """With the variations left out every window is a clip's own, with its sound, its lips, and a reference of it."""
    monkeypatch.setattr("fedtalk_ray.training.augment.View.of_pictures", lambda _, frames: frames_to_pixels(frames))
    monkeypatch.setattr("fedtalk_ray.training.augment.vary_speech", lambda speech, *_: speech)
    trainer, windows = shown(vary=vary, true_lips=1.0)
    assert len(windows) == 100 and windows.speech.shape == (100, 4, *LogMel.shape)
    base = bare_denoiser(trainer.model)
    clips = [encode_frames(trainer.pipeline.autoencoder, piece.frames) for piece in pieces]
    shapes = [base.lip_shape(torch.from_numpy(lip_motion(piece.landmarks))).numpy() for piece in pieces]
    found = places(clips, windows.latents)
    assert {clip for clip, _ in found} == {0, 1, 2}
    for (clip, begin), sound, reference, lips, seen in zip(
        found, windows.speech, windows.reference, windows.lips, windows.reference_lips, strict=True
    ):
        assert np.array_equal(pieces[clip].speech[begin : begin + 4].astype(np.float32), sound)
        np.testing.assert_allclose(lips, shapes[clip][begin : begin + 4], atol=1e-5)
        alike = [number for number, frame in enumerate(clips[clip]) if np.allclose(frame, reference, atol=2e-3)]
        known = ~seen.isnan().numpy()
        assert any(np.allclose(seen[known], shapes[clip][shown][known], atol=1e-5) for shown in alike)


def test_what_is_seen_and_heard_is_varied_and_its_lips_are_not(shown: Shown, pieces: list[Piece]) -> None:
    trainer, windows = shown(true_lips=1.0)
    stored = np.concatenate([piece.speech.astype(np.float32) for piece in pieces])
    assert not any(np.array_equal(frame, stored[0]) for frame in windows.speech.flatten(0, 1).numpy())
    latents = np.concatenate([piece.latents.astype(np.float32) for piece in pieces])
    for window in windows.latents[:20]:
        assert np.abs(latents - window[0].numpy()).mean((1, 2, 3)).min() > 1e-3
    base = bare_denoiser(trainer.model)
    shapes = [base.lip_shape(torch.from_numpy(lip_motion(piece.landmarks))).numpy() for piece in pieces]
    places(shapes, windows.lips)


@pytest.mark.parametrize("vary", [True, False])
def test_most_windows_are_told_their_lips_and_the_others_hear_them(shown: Shown, vary: bool) -> None:
    """Of 160 windows 112 are expected at 0.7, with a deviation of 5.8. Of a quarter of references, 40, the lips are
    unknown, with a deviation of 5.5, and of another all but the aperture."""
    _, windows = shown(vary=vary, true_lips=0.7, steps=40)
    told, heard = (~windows.lips.isnan()).all((1, 2)), windows.lips.isnan().all((1, 2))
    assert windows.lips.shape == (160, 4, 6) and bool((told | heard).all())
    assert 112 - 24 < int(told.sum()) < 112 + 24
    known = ~windows.reference_lips.isnan()
    assert known.shape == (160, 6) and bool((known[:, 1:].all(1) | ~known[:, 1:].any(1)).all())
    for hidden in (~known[:, 0], known[:, 0] & ~known[:, 1]):
        assert 40 - 22 < int(hidden.sum()) < 40 + 22


def without(people: People, **columns: Any) -> People:
    """The same people, whose batches are changed so."""

    class Changed(People):
        def batches(self, *args: Any, **more: Any) -> Any:
            for batch in super().batches(*args, **more):
                yield replace(batch, **{name: change(getattr(batch, name)) for name, change in columns.items()})

    return Changed(people.shards, people.manifest)


@pytest.mark.parametrize("vary", [True, False])
def test_silent_clips_are_refused(shown: Shown, people: People, vary: bool) -> None:
    """Before they are varied: the noise of another room would hide that there is nothing to hear."""
    with pytest.raises(NothingToGive, match="its clips are silent"):
        shown(among=without(people, speech=torch.zeros_like), vary=vary)


def test_shards_without_landmarks_are_refused_where_lips_are_wanted(shown, people, monkeypatch) -> None:
    """Shards of an older version: in one line, with what would help."""
    monkeypatch.setattr("fedtalk_ray.shards.reader.LANDMARKS", "none")  # as if the column were not there
    with pytest.raises(ShardError, match=r"has no landmarks: .* prepare the shards again") as caught:
        shown()
    assert "\n" not in str(caught.value)
    assert shown(true_lips=0.0)[1].lips.shape == (100, 4, 0)


def test_a_seed_means_the_same_windows(shown: Shown) -> None:
    one, again, other = (shown(number=number, rounds=2, steps=5)[1] for number in (1, 1, 2))
    for name in ("latents", "speech", "lips"):
        assert torch.equal(getattr(one, name).nan_to_num(7), getattr(again, name).nan_to_num(7)), name
        assert not torch.equal(getattr(one, name).nan_to_num(7), getattr(other, name).nan_to_num(7)), name


def test_the_rate_goes_over_all_rounds_of_the_phase_or_stays(shown: Shown) -> None:
    """Round 2 of 4, of 5 steps each, begins after 5 of 20."""
    pace = shown(number=2, rounds=4, steps=5, schedule="cosine")[0].told["pace"]
    assert (pace.peak, pace.before, pace.total) == (0.01, 5, 20)
    assert shown(number=2, rounds=4, steps=5)[0].told["pace"] is None


def test_it_ends_with_the_shared_part_and_nobodys_own_adapter(people: People, make_config, all_rounds) -> None:
    """A whole phase with one client: what is left is the shared vector, and an identity adapter without effect."""
    torch.manual_seed(0)
    pipeline = untrained_pipeline(people.manifest, widths=(16, 32), window=4)
    config = make_config(local={"steps": 2, "learning_rate": 0.01})
    trainer = LocalTrainer(pipeline, config)
    phase = Faces(trainer, config)
    start, frozen = phase.initial(), phase.frozen()
    (one, two) = all_rounds(phase, people, 2)
    assert one.identity is not None and one.identity.any() and set(one.losses) >= {"total", "diffusion"}
    np.testing.assert_allclose(adapters.to_vector(trainer.shared()), start + one.update + two.update, atol=1e-6)
    for name, parameter in trainer.identity():
        assert bool(parameter.any()) == (".lora_A." in name)
    assert phase.frozen() == frozen, "neither the shared part nor a client's own is among what is frozen"
