"""What a denoiser is trained on: diffusion, Temporal-Denoising Consistency, speech motion, identity, perception, sync.

All terms are means, so their weights do not depend on batch or window size. The noisy quantity is the residual r of the
latents on the reference's (`TalkingHeadDenoiser.to_residual`): x_t = alpha * r + sigma * eps, and x_t = 0 where
alpha is 0: at the last timestep, but for a network that predicts eps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DDIMScheduler

from fedtalk_ray.media.face_template import mouth_mask
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.motion_units import MotionUnits
from fedtalk_ray.model.schedule import noise_levels
from fedtalk_ray.recipe import LossConfig
from fedtalk_ray.shards.windows import WindowBatch

SNR_RANGE = (0.3, 5.0)
"""The x0 loss is weighted by the signal-to-noise ratio clamped to this range: clean steps must not drown the noisy
ones, where all motion is decided (Hang et al. 2023 clamp from above; the floor keeps pure noise in)."""


class FaceCritic(Protocol):
    """Compares generated with true frames in pixels; `model.identity.FaceCritic` is the one that ships."""

    def __call__(self, generated: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(identity, perceptual) distances, scalars, of latents [N, C, h, w]; differentiable in `generated`."""


@dataclass
class LossTerms:
    """Scalars, unweighted but for `total`; terms whose weight is 0 are not computed and stay 0."""

    total: torch.Tensor
    diffusion: torch.Tensor
    tdc: torch.Tensor
    motion: torch.Tensor
    identity: torch.Tensor
    perceptual: torch.Tensor
    sync: torch.Tensor

    def floats(self) -> dict[str, float]:
        return {name: float(value.detach()) for name, value in vars(self).items()}


def window_loss(
    denoiser: torch.nn.Module,
    scheduler: DDIMScheduler,
    batch: WindowBatch,
    config: LossConfig,
    generator: torch.Generator,
    critic: FaceCritic | None = None,
    sync_loss: Callable[..., torch.Tensor] | None = None,
) -> LossTerms:
    """One noise draw and its loss. `denoiser` is a backbone that is taught on latents, bare or inside a PEFT model.

    All randomness (timestep, noise, which windows lose their sound) comes from `generator`, on the CPU, so that a seed
    means the same run on every device.
    """
    base = bare_denoiser(denoiser)
    device = batch.latents.device
    clean = base.to_residual(batch.latents, batch.reference)
    count = len(clean)
    timestep = draw_timesteps(scheduler, count, config.noise_bias, generator).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    alpha, sigma = (level.to(device)[:, None, None, None, None] for level in noise_levels(scheduler, timestep.cpu()))
    # Where nothing of the clip is left, noise says nothing. Without it, what is learned there is a regression, and its
    # answer the mean that generation begins with (`model.sampling`).
    noise = noise * (alpha > 0)
    heard = (torch.rand(count, generator=generator) >= config.speech_dropout).to(device)
    noisy = scheduler.add_noise(clean, noise, timestep)
    sample = torch.cat([noisy, base.split(batch.latents)[1]], dim=2)
    given = sample, timestep, batch.speech, batch.reference, heard, batch.identity, batch.lips
    predicted = denoiser(*given, **base.told(batch.reference_lips, batch.bent)).to(clean.dtype)

    kind = base.config.prediction_type
    target = {"sample": clean, "epsilon": noise, "v_prediction": alpha * noise - sigma * clean}[kind]
    mask = error_weights(base, config.mouth_weight)
    time_weight = ((alpha / sigma) ** 2).clamp(*SNR_RANGE) if kind == "sample" else torch.ones_like(alpha)
    diffusion = (time_weight * mask * (predicted - target).square()).mean()
    tdc = motion = identity = perceptual = sync = diffusion.new_zeros(())
    if config.tdc:
        tdc = temporal_denoising_consistency(predicted, target, time_weight * mask)
    if config.motion:
        motion = (mask * (base.speech_motion(batch.speech) - clean).square()).mean()
    judged = (config.identity or config.perceptual) and critic is not None
    if judged or (config.sync and sync_loss is not None):
        generated = base.from_residual(to_clean(predicted, noisy, alpha, sigma, kind), batch.reference)
    if judged and critic is not None:
        frame = int(torch.randint(clean.shape[1], (), generator=generator))
        identity, perceptual = critic(generated[:, frame], batch.latents[:, frame])
    if config.sync and sync_loss is not None:
        sync = sync_loss(generated, batch.speech, batch.reference)
    total = (
        diffusion
        + config.tdc * tdc
        + config.motion * motion
        + config.identity * identity
        + config.perceptual * perceptual
        + config.sync * sync
    )
    return LossTerms(total, diffusion, tdc, motion, identity, perceptual, sync)


def draw_timesteps(scheduler: DDIMScheduler, count: int, bias: float, generator: torch.Generator) -> torch.Tensor:
    """Timesteps int64 [count] with density leaning to the noisy end (`LossConfig.noise_bias`)."""
    total = scheduler.config.num_train_timesteps
    share = 1 - torch.rand(count, generator=generator) ** bias
    return (share * total).long().clamp(max=total - 1)


def temporal_denoising_consistency(
    predicted: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """TDC = mean |(p[t+1] - p[t]) - (y[t+1] - y[t])| over consecutive frames (PrivFedTalk's L_TDC; there p, y = eps).

    predicted, target: [B, T, C, h, w], T >= 2. All frames of a window share one timestep, so for a network that
    predicts x0 or v the same errors are only rescaled: eps_hat - eps = -(alpha / sigma)(x0_hat - x0) and
    v_hat - v = -(1 / sigma)(x0_hat - x0), hence TDC_eps = (alpha / sigma) TDC_x0 and TDC_v = (1 / sigma) TDC_x0. We
    take it on whatever the network predicts; `weight` (broadcast over [B, T, C, h, w]) carries the loss's own weights.
    """
    error = predicted - target
    return (weight * (error[:, 1:] - error[:, :-1]).abs()).mean()


def to_clean(
    predicted: torch.Tensor, noisy: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, kind: str
) -> torch.Tensor:
    """x0 from a prediction of the given kind. For epsilon it is unbounded where alpha is near 0: clamped to 6 std."""
    if kind == "sample":
        return predicted
    if kind == "v_prediction":
        return alpha * noisy - sigma * predicted
    return ((noisy - sigma * predicted) / alpha.clamp(min=1e-3)).clamp(-6, 6)


def error_weights(denoiser: Any, mouth_weight: float) -> torch.Tensor:
    """[C or 1, h, w], mean 1: what errors of residuals count, which are in standard deviations of their channel; of
    plain latents all channels alike.

    In proportion to that deviation: all channels vary by 1, and fine detail, of which a small error is seen least and
    a sound says nothing, would drown the rest. (With 32 channels, after 500 steps, lips followed told ones by .77 for
    .70 without it; GRID, unseen speakers.)
    """
    cells = cell_weights(denoiser.config.latent_size, mouth_weight, denoiser.region).to(denoiser.device)
    if not isinstance(denoiser, MotionUnits):
        return cells[None]
    channels = denoiser.residual_std / denoiser.residual_std.mean()
    return channels[:, None, None] * cells


def cell_weights(side: int, mouth_weight: float, region: str = "face") -> torch.Tensor:
    """[side, side] weights with mean 1: `mouth_weight` times as much in the mouth region as elsewhere."""
    weights = 1 + (mouth_weight - 1) * torch.from_numpy(mouth_mask(side, region))
    return weights / weights.mean()
