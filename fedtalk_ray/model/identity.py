"""A small identity encoder of our own: differentiable, on-device, trained with the backbone on public clips.

It conditions nothing. It scores clients (IDSim) and, when its losses are switched on, pulls generated faces towards
the true ones. The judge of an evaluation is another network (`evaluation.judge`).
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class IdentityEncoder(ModelMixin, ConfigMixin):
    """Aligned face crops float [B, 3, S, S] in [-1, 1] to unit vectors [B, dimensions]."""

    @register_to_config
    def __init__(self, dimensions: int = 64, widths: tuple[int, ...] = (16, 32, 64, 96)) -> None:
        super().__init__()
        channels = (3, *widths)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.GroupNorm(8, after), nn.SiLU()
            )
            for before, after in zip(channels, widths, strict=False)
        )
        self.head = nn.Linear(widths[-1] * 4, dimensions)

    def features(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Activations after each stage, halving in size."""
        # Lighting and white balance are not identity: each picture's colours are standardised.
        mean = pixels.mean((2, 3), keepdim=True)
        spread = pixels.std((1, 2, 3), keepdim=True).clamp(min=0.05)
        hidden, kept = (pixels - mean) / spread, []
        for stage in self.stages:
            hidden = stage(hidden)
            kept.append(hidden)
        return kept

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pooled = F.adaptive_avg_pool2d(self.features(pixels)[-1], 2)
        return F.normalize(self.head(pooled.flatten(1)), dim=1)


class FaceCritic:
    """Identity and perceptual distance of generated latents from true ones, through a frozen decoder and encoder."""

    def __init__(self, autoencoder: ModelMixin, encoder: IdentityEncoder, scaling: float) -> None:
        self._autoencoder, self._encoder, self._scaling = autoencoder, encoder, scaling
        for network in (autoencoder, encoder):
            network.requires_grad_(False)

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures [N, 3, S, S] of scaled latents [N, C, h, w]."""
        return self._autoencoder.decode(latents / self._scaling).sample

    def embed(self, latents: torch.Tensor) -> torch.Tensor:
        """Unit identity vectors [N, dimensions]."""
        return self._encoder(self.pixels(latents))

    def __call__(self, generated: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(1 - mean cosine of embeddings, mean absolute difference of standardised features over the stages)."""
        fake, real = self.pixels(generated), self.pixels(truth)
        identity = 1 - (self._encoder(fake) * self._encoder(real)).sum(1).mean()
        pairs = zip(self._encoder.features(fake), self._encoder.features(real), strict=True)
        distances = [(a - b).abs().mean() / b.abs().mean().clamp(min=1e-6) for a, b in pairs]
        return identity, torch.stack(distances).mean()
