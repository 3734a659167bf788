"""What tells made mouths from real ones while the decoder learns to be sharp; no part of the model that is released."""

import torch
import torch.nn.functional as F
from torch import nn


class Adversary(nn.Module):
    """Judges patches of lower faces [B, 3, w, w] beside the same person's reference, as pix2pix does (1611.07004)."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96)) -> None:
        super().__init__()
        channels = (6, *widths)
        self.stages = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in zip(channels, widths, strict=False)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.judge = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, windows: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """How real each patch looks [B, 1, w / 8, w / 8], above 0 for real, and what every stage saw."""
        hidden = torch.cat([windows, reference], dim=1)
        seen: list[torch.Tensor] = []
        for number, stage in enumerate(self.stages):
            hidden = stage(hidden)
            if number:
                hidden = self.norms[number - 1](hidden)
            hidden = F.leaky_relu(hidden, 0.2)
            seen.append(hidden)
        return self.judge(hidden), seen
