"""What every backbone has, whatever network it is: which layers carry adapters, what it is taught on, what it is shown.

Beside its `forward` and its configuration (docs/extending.md) a backbone has one of two bases: `PlainLatents` here, or
`speech_code.CodedDenoiser`, whose residuals have units.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from fedtalk_ray.media.face_template import mouth_mask


class Backbone:
    """What both bases have.

    adapter_layers: the layers, by the ends of their names, that carry LoRA adapters. taught_on: whether its loss is
    taken on latents, or on pixels through the frozen decoder. each_frame_alone: it knows nothing of a frame's
    neighbours, sees each frame's own picture, and is shown on it.
    """

    adapter_layers: Sequence[str] = (
        *("conv1", "conv2", "conv3", "conv_shortcut", "time_emb_proj", "temporal", "linear1", "linear2", "conv"),
    )
    taught_on: Literal["latents", "pixels"] = "latents"
    each_frame_alone = False

    config: Any
    device: Any
    region: str = "face"

    def takes_reference_lips(self) -> bool:
        """Whether `forward` has a further argument: the reference's own lip shape."""
        return False

    def takes_bent(self) -> bool:
        """Whether it has another: the reference bent to the lips of each frame."""
        return False

    def told(self, reference_lips: torch.Tensor | None, bent: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Those arguments by their names; empty for a network without them."""
        given = {}
        if self.takes_reference_lips() and reference_lips is not None and reference_lips.shape[-1]:
            given["reference_lips"] = reference_lips
        if self.takes_bent() and bent is not None and bent.shape[2]:
            given["bent"] = bent
        return given

    def mouth(self) -> torch.Tensor:
        """The mouth's cells as float32 [h, w], 1 inside and 0 outside."""
        return torch.from_numpy(mouth_mask(int(self.config.latent_size), self.region))

    def split(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [..., C + G, h, w] as those that are made, C, and those that are given beside them, G."""
        made = int(self.config.latent_channels)
        return latents[..., :made, :, :], latents[..., made:, :, :]


class PlainLatents(Backbone):
    """A backbone whose latents are made as they are: there are no units to fix, and it knows no lip shapes. Of the
    phases `faces` alone can teach it."""

    def knows_lips(self) -> bool:
        return False

    def to_residual(self, latents: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Latents [B, T, C + G, h, w] without what is given: [B, T, C, h, w]."""
        return self.split(latents)[0]

    def from_residual(self, residual: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return residual

    def shown(self, mean: torch.Tensor, sample: torch.Tensor, motion: torch.Tensor | float = 0.0) -> torch.Tensor:
        return sample
