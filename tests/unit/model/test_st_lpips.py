import importlib.util

import pytest
import torch
import torch.nn.functional as F

from fedtalk_ray.errors import RunError
from fedtalk_ray.model.st_lpips import VggFeatures, load_st_lpips


@pytest.fixture(scope="module")
def features() -> VggFeatures:
    if importlib.util.find_spec("stlpips_pytorch") is None:
        pytest.skip("stlpips-pytorch is not installed")
    return VggFeatures()


def pictures(seed: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_features_are_the_first_two_of_the_whole_network(features: VggFeatures) -> None:
    whole = load_st_lpips("vgg")
    with torch.no_grad():
        first, second, *_ = whole.net(whole.scaling_layer(pictures(0)))
        ours = features(pictures(0))
    assert [found.shape for found in ours] == [(2, 64, 32, 32), (2, 128, 17, 17)]
    assert torch.equal(ours[0], first) and torch.equal(ours[1], second)


def test_the_distance_is_added_up_over_the_stages_and_teaches_what_was_made(features: VggFeatures) -> None:
    true, made = pictures(0).requires_grad_(), pictures(1).requires_grad_()
    distance = features.distance(made, true)
    by_hand = sum(float((a - b).detach().abs().mean()) for a, b in zip(features(made), features(true), strict=True))
    assert float(distance.detach()) == pytest.approx(by_hand, rel=1e-5)
    distance.backward()
    assert made.grad is not None and made.grad.abs().sum() > 0 and true.grad is None
    assert not [name for name, value in features.named_parameters() if value.requires_grad]


def test_a_blurred_picture_is_further_than_a_darker_one_of_the_same_error(features: VggFeatures) -> None:
    """What pixels do not tell: both differ from the picture by as much."""
    true = pictures(0)
    blurred = F.avg_pool2d(true, 3, 1, 1)
    darker = true - (blurred - true).abs().mean()
    assert float(features.distance(true, true)) == 0
    assert features.distance(blurred, true) > 2 * features.distance(darker, true)


def test_a_package_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"sharpness.vgg asks for VGG-16, .*pip install stlpips-pytorch, or leave"):
        VggFeatures()
