"""Windows: consecutive frames with their sound, a reference of the same piece, and held-out ones that never move."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.errors import ShardError
from fedtalk_ray.media.lips import lip_motion
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.shards.windows import Wanted, WindowBatch, cut_windows, held_out_windows


def numbered(length: int, offset: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Latents [length, 1, 2, 2] and speech [length, 2, 3] whose values are the frame's number."""
    ticks = np.arange(offset, offset + length, dtype=np.float16)
    return np.tile(ticks[:, None, None, None], (1, 1, 2, 2)), np.tile(ticks[:, None, None], (1, 2, 3))


def piece(length: int, offset: int = 0, identity: tuple[float, ...] = ()) -> Piece:
    latents, speech = numbered(length, offset)
    return Piece("s1", "a", 0, np.zeros(0), latents, speech, np.zeros(0), np.array(identity, np.float32))


@settings(max_examples=25, deadline=None)
@given(length=st.integers(4, 40), window=st.integers(1, 4), count=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_windows_are_consecutive_frames_with_their_sound(length: int, window: int, count: int, seed: int) -> None:
    cut = cut_windows(piece(length), window, count, str(seed))
    assert cut["latents"].shape == (count, window, 1, 2, 2)
    assert cut["speech"].shape == (count, window, 2, 3) and cut["reference"].shape == (count, 1, 2, 2)
    frames = cut["latents"][..., 0, 0, 0]
    assert (np.diff(frames, axis=1) == 1).all()
    assert (cut["speech"][..., 0, 0] == frames).all()
    assert (frames >= 0).all() and (frames < length).all() and (cut["reference"] < length).all()
    with pytest.raises(ValueError):
        cut_windows(piece(window - 1), window, 1, "0")


def test_every_place_and_every_reference_is_drawn_equally_often() -> None:
    """Chi-square over 7 places and 10 frames; the 0.1% points for 6 and 9 degrees of freedom are 22.5 and 27.9."""
    cut = cut_windows(piece(10), 4, 7000, "0")
    for values, places, limit in ((cut["latents"][:, 0, 0, 0, 0], 7, 22.5), (cut["reference"][:, 0, 0, 0], 10, 27.9)):
        counts = np.bincount(values.astype(int), minlength=places)
        assert len(counts) == places
        assert ((counts - 7000 / places) ** 2 / (7000 / places)).sum() < limit


def test_held_out_windows_by_hand() -> None:
    """Two pieces of 20 and 30 frames, four windows of 4: two from each, in turn.

    Window i begins at room * (2 i + 1) / 8: 16 * 1/8 = 2 and 16 * 3/8 = 6, then 26 * 5/8 = 16 and 26 * 7/8 = 22.
    """
    windows = held_out_windows(iter([piece(20), piece(30, 100)]), 4, 4)
    assert windows.latents[:, 0, 0, 0, 0].tolist() == [2, 6, 116, 122]
    assert windows.reference[:, 0, 0, 0].tolist() == [0, 0, 100, 100]
    assert (windows.speech[..., 0, 0] == windows.latents[..., 0, 0, 0]).all()
    assert len(windows) == 4 and windows.identity.shape == (4, 0)
    assert all(part.device.type == "meta" for part in vars(windows.to("meta")).values())
    assert all(part.dtype == torch.float32 for part in vars(windows).values())


def test_every_window_carries_its_clips_identity() -> None:
    cut = cut_windows(piece(10, identity=(0.6, 0.8)), 4, 3, "0")
    assert cut["identity"].dtype == np.float32 and cut["identity"] == pytest.approx(np.array([[0.6, 0.8]] * 3))
    batch = held_out_windows([piece(10, identity=(0.0, 1.0)), piece(10, identity=(1.0, 0.0))], 4, 4)
    assert batch.identity.tolist() == [[0, 1], [0, 1], [1, 0], [1, 0]] and batch.identity.dtype == torch.float32
    assert cut_windows(piece(10), 4, 3, "0")["identity"].shape == (3, 0)
    batch = WindowBatch(torch.zeros(5, 4, 1, 2, 2), torch.zeros(5, 4, 2, 3), torch.zeros(5, 1, 2, 2))
    assert batch.identity.shape == (5, 0)


def test_every_reference_has_its_own_lips_and_points() -> None:
    """Of the frame that is shown, of the mean frame the mean; none where lips are not wanted."""
    points = np.random.default_rng(0).uniform(0.2, 0.8, (20, 68, 2)).astype(np.float32)
    whole, motion = replace(piece(20), landmarks=points), lip_motion(points)
    cut = cut_windows(whole, 4, 9, "0", Wanted(lips=True))
    shown = cut["reference"][:, 0, 0, 0].astype(int)
    assert len(set(shown)) > 3
    np.testing.assert_array_equal(cut["reference_lips"], motion[shown])
    np.testing.assert_array_equal(cut["reference_points"], points[shown])
    np.testing.assert_array_equal(cut["lips"], motion[cut["latents"][..., 0, 0, 0].astype(int)])
    mean = cut_windows(whole, 4, 9, "0", Wanted(lips=True, mean_reference=True))
    np.testing.assert_allclose(mean["reference_points"], np.repeat(points.mean(0)[None], 9, axis=0), atol=1e-6)
    np.testing.assert_allclose(mean["reference_lips"], np.repeat(motion.mean(0)[None], 9, axis=0), atol=1e-6)
    held_out = held_out_windows([whole], 4, 2, lips=True)
    np.testing.assert_array_equal(held_out.lips.numpy(), np.stack([motion[4:8], motion[12:16]]))
    with pytest.raises(ShardError, match="has no landmarks"):
        held_out_windows([piece(20)], 4, 2, lips=True)
    bare = cut_windows(whole, 4, 9, "0")
    assert bare["reference_lips"].shape == (9, 0) and bare["reference_points"].shape == (9, 0, 2)
