import pytest
import torch

from fedtalk_ray.model.st_lpips import VggFeatures, load_st_lpips


@pytest.fixture(scope="module")
def whole() -> torch.nn.Module:
    return load_st_lpips("vgg") or pytest.skip("stlpips-pytorch is not installed")


@pytest.fixture(scope="module")
def features(whole: torch.nn.Module) -> VggFeatures:
    with pytest.MonkeyPatch.context() as patch:  # it takes seconds to read
        patch.setattr("fedtalk_ray.model.st_lpips.load_st_lpips", {"vgg": whole}.get)
        return VggFeatures()


def pictures(seed: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_features_are_the_first_two_of_the_whole_network(whole: torch.nn.Module, features: VggFeatures) -> None:
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
