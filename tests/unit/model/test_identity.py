"""The identity encoder sees a face and not its light; the critic measures distances that a generator can descend."""

import pytest
import torch

from fedtalk_ray.model.autoencoder import PatchAutoencoder
from fedtalk_ray.model.identity import FaceCritic, IdentityEncoder


@pytest.fixture
def encoder() -> IdentityEncoder:
    torch.manual_seed(0)
    return IdentityEncoder(dimensions=8, widths=(8, 16))


@pytest.fixture
def autoencoder() -> PatchAutoencoder:
    return PatchAutoencoder(luma_coefficients=2, chroma_coefficients=1, decoder_width=8, scaling_factor=0.5)


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 0.3


def test_equal_faces_have_no_distance_and_others_have(autoencoder, encoder) -> None:
    critic = FaceCritic(autoencoder, encoder, 0.5)
    with torch.no_grad():
        latents, others = (autoencoder.encode(pictures(4, seed)).latents * 0.5 for seed in (0, 1))
        assert torch.equal(critic.pixels(latents), autoencoder.decode(latents / 0.5).sample)
    identity, perceptual = critic(latents, latents)
    assert identity.item() == pytest.approx(0, abs=1e-6) and perceptual.item() == 0
    identity, perceptual = critic(latents, others)
    cosine = (critic.embed(latents) * critic.embed(others)).sum(1).mean()
    assert identity.item() == pytest.approx(1 - cosine.item(), abs=1e-6) and identity.item() > 1e-3
    assert perceptual.item() > 0.1


def test_only_the_generated_latents_get_a_gradient(autoencoder, encoder) -> None:
    critic = FaceCritic(autoencoder, encoder, 1.0)
    generated, truth = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    generated.requires_grad_(True)
    sum(critic(generated, truth)).backward()
    assert generated.grad is not None and generated.grad.abs().sum() > 0
    for network in (autoencoder, encoder):
        assert all(parameter.grad is None for parameter in network.parameters())
