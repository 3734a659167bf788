from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedtalk_ray.evaluation import metrics
from fedtalk_ray.evaluation.clip_figures import (
    MAX_OFFSET,
    likeness,
    lip_agreement,
    lip_offset,
    measure,
    measure_truth,
    real_figures,
)
from fedtalk_ray.evaluation.perceptual import PerceptualDistance
from fedtalk_ray.media.framing import ALIGNED
from fedtalk_ray.shards.format import Piece

LIPS = np.random.default_rng(0).normal(size=60).cumsum()


class ColourJudge:
    """Knows people by their mean colour. An embedding is a plain vector, so likeness can be worked out by hand."""

    def embed(self, frame: np.ndarray) -> np.ndarray:
        return frame.reshape(-1, 3).mean(axis=0).astype(np.float32)


def plain(*colours: tuple[int, int, int], count: int = 21) -> np.ndarray:
    """count frames of 32 x 32 pixels, the colours in turn, one every 15 frames from frame 5 on: those judged."""
    frames = np.empty((count, 32, 32, 3), np.uint8)
    frames[:] = colours[0]
    for number, colour in enumerate(colours):
        frames[5 + 15 * number] = colour
    return frames


def piece(frames: np.ndarray) -> Piece:
    nothing = np.empty(0)
    sound = (np.random.default_rng(0).normal(0, 3000, 640 * len(frames))).astype(np.int16)
    return Piece("a", "clip", 0, frames, nothing, nothing, sound)


@pytest.mark.parametrize("late", [-5, -2, 0, 1, 4])
def test_offset_is_the_delay_that_was_put_in(late: int) -> None:
    """Ten values beyond either end, so that no made-up value enters: true[t] is LIPS[10 + t], ours runs `late`."""
    assert lip_offset(LIPS[10 - late : 50 - late], LIPS[10:50]) == late


def test_no_offset_of_a_still_of_a_contrary_or_of_a_short_series() -> None:
    assert lip_offset(np.full(40, 0.2), LIPS[:40]) is None
    ramp = np.arange(40.0)
    assert lip_offset(-ramp, ramp) is None
    assert lip_offset(LIPS[: 2 * MAX_OFFSET], LIPS[: 2 * MAX_OFFSET]) is None
    assert lip_offset(LIPS[: 2 * MAX_OFFSET + 1], LIPS[: 2 * MAX_OFFSET + 1]) == 0


def test_identity_is_measured_against_this_clip_and_against_another() -> None:
    """Red and green at the judged moments. Generated swaps them: unlike this clip, as like another one as the truth."""
    judge: Any = ColourJudge()
    red, green = (200, 0, 0), (0, 200, 0)
    frames, swapped, other = plain(red, green), plain(green, red), plain(red, red)
    truth = measure_truth(piece(frames), judge, other)
    same, unlike = measure(frames, truth, judge), measure(swapped, truth, judge)
    assert (same["identity"], unlike["identity"]) == (pytest.approx(1), pytest.approx(0))
    assert same["identity_other_clip"] == unlike["identity_other_clip"] == pytest.approx(0.5)
    assert real_figures(truth) == {"identity_other_clip": pytest.approx(0.5)}


def test_what_cannot_be_known_is_none_and_what_was_not_asked_is_absent() -> None:
    judge: Any = ColourJudge()
    frames = plain((90, 80, 70))
    alone = measure_truth(piece(frames), judge, None)
    assert measure(frames, alone, judge)["identity_other_clip"] is None
    assert real_figures(alone) == {"identity_other_clip": None}
    bare = measure_truth(piece(frames), None, None)
    assert real_figures(bare) == {}
    assert not {"identity", "identity_other_clip", "l1"} & measure(frames, bare).keys()
    l1 = PerceptualDistance("l1", lambda a, b: (a - b).abs().mean())
    assert measure(frames, bare, None, l1)["l1"] == 0
    # (1, 0) with (1, 0) and (0, 1): 1 and 0; (3, 4) with them: 0.6 and 0.8.
    assert likeness(np.array([[1.0, 0], [3, 4]]), np.array([[1.0, 0], [0, 1]])) == pytest.approx(2.4 / 4)


def test_the_truth_is_perfect_and_a_still_follows_nothing() -> None:
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (21, 32, 32, 3), dtype=np.uint8)
    truth = measure_truth(piece(frames), None, None)
    assert truth.speech == slice(0, 21)
    figures = measure(frames, truth)
    assert figures["psnr"] == figures["mouth_psnr"] == pytest.approx(metrics.PSNR_CEILING)
    assert figures["jitter_ratio"] == figures["ssim"] == figures["lip_offset_within_2"] == pytest.approx(1)
    assert figures["lip_correlation"] == figures["lip_correlation_spoken"] == pytest.approx(1)
    still = measure(np.repeat(frames[:1], 21, axis=0), truth)
    assert still["lip_correlation"] == still["lip_offset_within_2"] == still["jitter_ratio"] == 0


def test_lips_agree_as_the_row_of_the_table_says(monkeypatch) -> None:
    """A model that says the clip backwards, from its first frame and its sound: the figure that `measure` gives it."""
    monkeypatch.setattr("fedtalk_ray.evaluation.clip_figures.lip_aperture", lambda frames: frames.mean((1, 2, 3)))
    clip = piece(np.random.default_rng(1).integers(0, 255, (30, 32, 32, 3)).astype(np.uint8))
    asked = []

    class Backwards:
        framing = ALIGNED

        def __call__(self, face: np.ndarray, audio: np.ndarray, generator: Any) -> Any:
            asked.append((face, audio))
            return SimpleNamespace(frames=np.concatenate([clip.frames[::-1], clip.frames]))

    found = lip_agreement(Backwards(), clip)  # type: ignore[arg-type]
    assert found == measure(clip.frames[::-1], measure_truth(clip, None, None))["lip_correlation_spoken"]
    ((face, audio),) = asked
    assert (face == clip.frames[0]).all() and np.allclose(audio * 32767, clip.waveform, atol=1e-2)
