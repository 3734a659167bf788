"""The noise schedule, one for training and sampling (diffusers' DDIM)."""

import torch
from diffusers import DDIMScheduler


def make_scheduler(prediction_type: str) -> DDIMScheduler:
    """The noise schedule of training and sampling: cosine, ending in pure noise.

    x0 and v networks need the zero terminal SNR (Lin et al. 2023), or sampling starts from a noise level never
    trained on; an epsilon network cannot learn anything there and keeps the usual schedule.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=prediction_type != "epsilon",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def noise_levels(scheduler: DDIMScheduler, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha, sigma), each like `timestep`, with alpha^2 + sigma^2 = 1; sigma is kept above 0 to divide by."""
    cumulative = scheduler.alphas_cumprod[timestep]
    return cumulative.sqrt(), (1 - cumulative).clamp(min=1e-6).sqrt()
