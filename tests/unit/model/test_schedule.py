"""The noise schedule: variance preserved, pure noise at the end where the network predicts x0 or v."""

import pytest
import torch

from fedtalk_ray.model.denoiser import PREDICTION_TYPES
from fedtalk_ray.model.schedule import make_scheduler, noise_levels

ALL = torch.arange(1000)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_alpha_squared_plus_sigma_squared_is_one(kind: str) -> None:
    alpha, sigma = noise_levels(make_scheduler(kind), ALL)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(1000), atol=1e-6)
    assert (sigma > 0).all() and (alpha[1:] < alpha[:-1]).all()


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_levels_are_those_that_noise_is_added_with(kind: str) -> None:
    scheduler = make_scheduler(kind)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1000, 3, generator=generator)
    alpha, sigma = noise_levels(scheduler, ALL)
    expected = alpha[:, None] * clean + sigma[:, None] * noise
    assert torch.allclose(scheduler.add_noise(clean, noise, ALL), expected, atol=2e-3)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_the_last_step_is_pure_noise(kind: str) -> None:
    scheduler = make_scheduler(kind)
    alpha, sigma = noise_levels(scheduler, torch.tensor([999]))
    assert (alpha.item(), sigma.item()) == (0.0, 1.0)
    clean, noise = torch.ones(1, 3), torch.tensor([[0.1, -2.0, 0.7]])
    assert torch.equal(scheduler.add_noise(clean, noise, torch.tensor([999])), noise)


def test_an_epsilon_network_always_has_some_signal_left() -> None:
    alpha, _ = noise_levels(make_scheduler("epsilon"), torch.tensor([999]))
    assert alpha.item() > 0


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_sampling_starts_at_the_noisiest_step_that_was_trained(kind: str) -> None:
    scheduler = make_scheduler(kind)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]


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
