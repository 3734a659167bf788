import numpy as np
import pytest
import scipy.linalg
import torch

from fedtalk_ray.evaluation.frechet import FRAME_STEP, FeatureNetwork, frechet_distance, halves
from fedtalk_ray.evaluation.perceptual import PerceptualDistance


def test_distance_of_two_plain_sets_by_hand() -> None:
    """One dimension: {0, 2} has mean 1 and variance 2, {10, 14} mean 12 and variance 8: 121 + 2 + 8 - 2 sqrt(16)."""
    a, b = np.array([[0.0], [2.0]]), np.array([[10.0], [14.0]])
    assert frechet_distance(a, b) == pytest.approx(123)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b[:1]) is None


def test_distance_agrees_with_scipys_matrix_root() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 5)), rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)) + 0.5
    one, other = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(one @ other).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + other - 2 * root)
    assert frechet_distance(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(expected, rel=1e-4)


def test_halves_share_clips_and_no_frame() -> None:
    first, second = halves([np.array([[0], [1], [2]]), np.array([[10], [11]])])
    assert first.ravel().tolist() == [0, 2, 10]
    assert second.ravel().tolist() == [1, 11]


def test_every_fifth_frame_has_its_features_and_a_repeated_one_is_not_asked_again() -> None:
    asked = []

    def mean_colour(picture: torch.Tensor) -> torch.Tensor:
        assert picture.dtype == torch.uint8
        asked.append(picture.shape)
        return picture.float().mean(dim=(2, 3))

    frames = np.zeros((16, 4, 4, 3), np.uint8)
    frames[..., 1] = np.arange(16)[:, None, None]
    network = FeatureNetwork("colour", mean_colour)
    assert FRAME_STEP == 5
    assert network.features(frames).tolist() == [[0, 0, 0], [0, 5, 0], [0, 10, 0], [0, 15, 0]]
    assert len(asked) == 4
    assert network.features(np.repeat(frames[3:4], 16, axis=0)).tolist() == [[0, 3, 0]] * 4
    assert asked[4:] == [(1, 3, 4, 4)]


def test_every_fifth_frame_scaled_to_one_is_compared() -> None:
    """Levels 0 and 255 are -1 and 1: 2 apart in frames 0 and 5, equal in frame 10; what lies between is not seen."""
    distance = PerceptualDistance("l1", lambda a, b: (a - b).abs().mean())
    a, b = np.zeros((11, 8, 8, 3), np.uint8), np.full((11, 8, 8, 3), 77, np.uint8)
    b[0], b[5], b[10] = 255, 255, 0
    assert distance(a, b) == pytest.approx(4 / 3)
    assert distance(a, a) == 0
    with pytest.raises(ValueError, match=r"got \[11, 8, 8, 3\] and \[10, 8, 8, 3\]"):
        distance(a, b[:10])
