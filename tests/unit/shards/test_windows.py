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


@settings(max_examples=40, deadline=None)
@given(length=st.integers(4, 40), window=st.integers(1, 4), count=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_windows_are_consecutive_frames_with_their_sound(length: int, window: int, count: int, seed: int) -> None:
    cut = cut_windows(piece(length), window, count, str(seed))
    assert cut["latents"].shape == (count, window, 1, 2, 2)
    assert cut["speech"].shape == (count, window, 2, 3) and cut["reference"].shape == (count, 1, 2, 2)
    frames = cut["latents"][..., 0, 0, 0]
    assert (np.diff(frames, axis=1) == 1).all()
    assert (cut["speech"][..., 0, 0] == frames).all()
    assert (frames >= 0).all() and (frames < length).all() and (cut["reference"] < length).all()


def test_every_place_and_every_reference_is_drawn_equally_often() -> None:
    """Chi-square over 7 places and 10 frames; the 0.1% points for 6 and 9 degrees of freedom are 22.5 and 27.9."""
    cut = cut_windows(piece(10), 4, 7000, "0")
    for values, places, limit in ((cut["latents"][:, 0, 0, 0, 0], 7, 22.5), (cut["reference"][:, 0, 0, 0], 10, 27.9)):
        counts = np.bincount(values.astype(int), minlength=places)
        assert len(counts) == places
        assert ((counts - 7000 / places) ** 2 / (7000 / places)).sum() < limit


def test_a_piece_as_long_as_a_window_gives_that_window() -> None:
    cut = cut_windows(piece(4), 4, 3, "0")
    assert (cut["latents"][:, :, 0, 0, 0] == np.arange(4)).all()


def test_a_seed_means_the_same_windows() -> None:
    cuts = [cut_windows(piece(30), 4, 5, str(seed)) for seed in (0, 0, 1)]
    assert all((cuts[0][name] == cuts[1][name]).all() for name in cuts[0])
    assert (cuts[0]["latents"] != cuts[2]["latents"]).any()


def test_a_piece_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError):
        cut_windows(piece(3), 4, 1, "0")


def test_held_out_windows_by_hand() -> None:
    """Two pieces of 20 and 30 frames, four windows of 4: two from each, in turn.

    Window i begins at room * (2 i + 1) / 8: 16 * 1/8 = 2 and 16 * 3/8 = 6, then 26 * 5/8 = 16 and 26 * 7/8 = 22.
    """
    windows = held_out_windows(iter([piece(20), piece(30, 100)]), 4, 4)
    assert windows.latents[:, 0, 0, 0, 0].tolist() == [2, 6, 116, 122]
    assert windows.reference[:, 0, 0, 0].tolist() == [0, 0, 100, 100]
    assert (windows.speech[..., 0, 0] == windows.latents[..., 0, 0, 0]).all()
    assert len(windows) == 4
    assert all(part.dtype == torch.float32 for part in vars(windows).values())


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(4, 40), min_size=1, max_size=5), count=st.integers(1, 12))
def test_held_out_windows_are_whole_in_their_piece_and_use_pieces_evenly(lengths: list[int], count: int) -> None:
    pieces = [piece(length, 100 * number) for number, length in enumerate(lengths)]
    windows = held_out_windows(pieces, 4, count)
    assert windows.latents.shape == (count, 4, 1, 2, 2)
    owners = (windows.latents[:, 0, 0, 0, 0] // 100).int().tolist()
    assert owners == sorted(owners)
    for window, owner in zip(windows.latents[..., 0, 0, 0], owners, strict=True):
        assert (window.diff() == 1).all() and window[-1] < 100 * owner + lengths[owner]
    used = [owners.count(number) for number in range(len(lengths))]
    assert max(used) - min(used) <= 1
    again = held_out_windows(pieces, 4, count)
    assert torch.equal(windows.latents, again.latents)


def test_a_batch_goes_to_a_device_whole() -> None:
    windows = held_out_windows([piece(20)], 4, 2)
    moved = windows.to("meta")
    assert all(part.device.type == "meta" for part in vars(moved).values()) and len(moved) == 2


def test_every_window_carries_its_clips_identity() -> None:
    cut = cut_windows(piece(10, identity=(0.6, 0.8)), 4, 3, "0")
    assert cut["identity"].dtype == np.float32 and cut["identity"] == pytest.approx(np.array([[0.6, 0.8]] * 3))
    batch = held_out_windows([piece(10, identity=(0.0, 1.0)), piece(10, identity=(1.0, 0.0))], 4, 4)
    assert batch.identity.tolist() == [[0, 1], [0, 1], [1, 0], [1, 0]] and batch.identity.dtype == torch.float32
    moved = batch.to("cpu")
    assert moved.identity.tolist() == batch.identity.tolist()


def test_without_an_embedding_the_identity_is_empty() -> None:
    assert cut_windows(piece(10), 4, 3, "0")["identity"].shape == (3, 0)
    assert held_out_windows([piece(10)], 4, 2).identity.shape == (2, 0)
    batch = WindowBatch(torch.zeros(5, 4, 1, 2, 2), torch.zeros(5, 4, 2, 3), torch.zeros(5, 1, 2, 2))
    assert batch.identity.shape == (5, 0)


def test_an_identity_does_not_change_which_windows_are_drawn() -> None:
    with_one, without = (cut_windows(piece(30, identity=who), 4, 8, "3") for who in ((1.0, 1.0), ()))
    for name in ("latents", "speech", "reference"):
        assert (with_one[name] == without[name]).all()


def test_held_out_windows_have_lips_only_where_they_are_asked_for() -> None:
    """What reads whole pieces must not have lips that move taken for shapes to train with."""
    points = np.random.default_rng(0).uniform(0.2, 0.8, (20, 68, 2)).astype(np.float32)
    whole = replace(piece(20), landmarks=points)
    without = held_out_windows([whole], 4, 2)
    assert without.lips.shape == (2, 4, 0) and without.reference_lips.shape == (2, 0)
    assert without.reference_points.shape == (2, 0, 2)
    windows = held_out_windows([whole], 4, 2, lips=True)
    for found, first in ((windows.reference_lips, lip_motion(points)[0]), (windows.reference_points, points[0])):
        np.testing.assert_array_equal(found.numpy(), np.stack([first, first]))
    np.testing.assert_array_equal(
        windows.lips.numpy(), np.stack([lip_motion(points)[begin : begin + 4] for begin in (4, 12)])
    )


def test_every_reference_has_its_own_lips() -> None:
    """Of the frame that is shown, of the mean frame the mean; none where lips are not wanted."""
    points = np.random.default_rng(0).uniform(0.2, 0.8, (20, 68, 2)).astype(np.float32)
    whole, motion = replace(piece(20), landmarks=points), lip_motion(points)
    cut = cut_windows(whole, 4, 9, "0", Wanted(lips=True))
    shown = cut["reference"][:, 0, 0, 0].astype(int)
    assert len(set(shown)) > 3
    np.testing.assert_array_equal(cut["reference_lips"], motion[shown])
    np.testing.assert_array_equal(cut["lips"], motion[cut["latents"][..., 0, 0, 0].astype(int)])
    at_rest = cut_windows(whole, 4, 9, "0", Wanted(lips=True, mean_reference=True))["reference_lips"]
    np.testing.assert_allclose(at_rest, np.repeat(motion.mean(0)[None], 9, axis=0), atol=1e-6)
    assert np.abs(at_rest[:, 1:]).max() < 1e-6, "displacements count from where the mouth sits"
    assert cut_windows(whole, 4, 9, "0")["reference_lips"].shape == (9, 0)


def test_every_reference_has_its_own_points() -> None:
    """Where the face of the frame that is shown has them; of the mean frame their mean."""
    points = np.random.default_rng(0).uniform(0.2, 0.8, (20, 68, 2)).astype(np.float32)
    whole = replace(piece(20), landmarks=points)
    cut = cut_windows(whole, 4, 9, "0", Wanted(lips=True))
    np.testing.assert_array_equal(cut["reference_points"], points[cut["reference"][:, 0, 0, 0].astype(int)])
    at_rest = cut_windows(whole, 4, 9, "0", Wanted(lips=True, mean_reference=True))["reference_points"]
    np.testing.assert_allclose(at_rest, np.repeat(points.mean(0)[None], 9, axis=0), atol=1e-6)
    assert cut_windows(whole, 4, 9, "0")["reference_points"].shape == (9, 0, 2)


def test_windows_with_lips_of_shards_without_landmarks_are_refused() -> None:
    with pytest.raises(ShardError, match=r"has no landmarks: it was prepared by an older version"):
        held_out_windows([piece(20)], 4, 2, lips=True)
