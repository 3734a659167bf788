"""The noise schedule: variance preserved, pure noise at the end where the network predicts x0 or v."""

import pytest
import torch

from fedtalk_ray.model.denoiser import PREDICTION_TYPES
from fedtalk_ray.model.schedule import make_scheduler, noise_levels


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_a_perfect_prediction_is_sampled_to_the_clean_picture(kind: str) -> None:
    """DDIM with the true x0, v or noise ends at x0: network targets and scheduler mean the same thing."""
    scheduler = make_scheduler(kind)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 64, generator=generator)
    scheduler.set_timesteps(10)
    first = scheduler.timesteps[:1]
    noisy = scheduler.add_noise(clean, noise, first)
    for timestep in scheduler.timesteps:
        alpha, sigma = noise_levels(scheduler, timestep)
        true_noise = (noisy - alpha * clean) / sigma
        target = {"sample": clean, "epsilon": true_noise, "v_prediction": alpha * true_noise - sigma * clean}[kind]
        noisy = scheduler.step(target, timestep, noisy).prev_sample
    assert torch.allclose(noisy, clean, atol=1e-2)
