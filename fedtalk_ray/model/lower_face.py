"""Pictures to latents of the lower face alone, and back into the picture of the person: an autoencoder of our own.

Speech moves the lower face, so that is where latents are spent: above it a picture stays as it is, to the bit. The
encoder is a fixed orthonormal transform (8x8 cosine basis times an opponent-colour basis, the low frequencies), so
shards can be prepared before anything was trained. What it drops, the finest detail, the decoder takes from a reference
picture of the person: untrained, it adds the reference's own; the phase `sharpness` teaches it to paint what a
prediction leaves soft.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import nn

from fedtalk_ray.media.compositing import mask_of
from fedtalk_ray.media.face_template import REGIONS, region_edges
from fedtalk_ray.model.patch_basis import patch_encoder

FOLD = 4
"""Pixels a side that the decoder takes together: it works on windows of a quarter of the side."""


SKINS = ((-0.5, -0.05), (0.07, 0.4))
"""Between what means of Cb and Cr the lower faces of people lie, drawn ones and real ones in coloured light: BT.601, of
colours in [-1, 1]. A blue puppet's are (0.1, -0.1)."""

_CHROMA = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_OF_CHROMA = ((0.0, 1.402), (-0.344136, -0.714136), (1.772, 0.0))
"""RGB to (Cb, Cr), and (Cb, Cr) with Y = 0 to RGB."""


class LowerFaceAutoencoder(ModelMixin, ConfigMixin):
    """Latents of the region "lower face" of aligned crops, decoded onto a reference crop.

    Crops are float [B, 3, S, S] in [-1, 1], 2S / 3 a multiple of `patch`; latents are [B, C, h, h], h = 2S / 3 / patch.
    Latents are orthonormal coefficients: their squared error is the pixels'.

    known_chroma: the means of Cb and Cr, each (least, most), that the decoder's network knows. Who lies beyond them is
    shown to it shifted to the nearest that it knows, since what it adds hardly depends on the colour, but colours that
    it never saw it answers with stripes. None: shown as they are.
    """

    region = "lower face"

    @register_to_config
    def __init__(
        self,
        patch: int = 8,
        luma_coefficients: int = 20,
        chroma_coefficients: int = 6,
        widths: tuple[int, int] = (64, 96),
        scaling_factor: float = 1.0,
        known_chroma: tuple[tuple[float, float], tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = patch_encoder(patch, luma_coefficients, chroma_coefficients)
        self.latent_channels = self.encoder.out_channels
        self.decoder = ReferenceDecoder(*widths)

    @property
    def size_step(self) -> int:
        """Crops must be so many pixels a side, or a multiple: cells are whole, and may be halved twice."""
        return 6 * int(self.config.patch)

    def window(self, crops: torch.Tensor) -> torch.Tensor:
        """The lower face of crops [B, 3, S, S]: [B, 3, 2S / 3, 2S / 3]."""
        left, top, right, bottom = region_edges(crops.shape[-1], self.region)
        return crops[..., top:bottom, left:right]

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        latents = self.encoder(self.window(x))
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(
        self,
        z: torch.Tensor,
        reference: torch.Tensor | None = None,
        soft_border: bool = True,
        detail: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Crops [B, 3, S, S]: `windows` of these latents, laid over the reference [B or 1, 3, S, S].

        detail: lower faces [B, 3, w, w] to take detail from; None for the reference's own.

        soft_border: laid by the mask with which a face is put back into its picture (`media.compositing`); else all of
        the lower face is what was made. Without a reference it lies on grey, and is as soft as the latents.
        """
        side = round(self.side(z.shape[-1]) / (REGIONS[self.region][2] - REGIONS[self.region][0]))
        if reference is None:
            whole, made = z.new_zeros(len(z), 3, side, side), self.soft(z)
        else:
            own = self.window(reference) if detail is None else detail
            whole, made = reference.expand(len(z), -1, -1, -1), self.windows(z, own)
        left, top, right, bottom = region_edges(side, self.region)
        laid = F.pad(made, (left, side - right, top, side - bottom))
        if soft_border:
            mask = torch.from_numpy(mask_of(side)).to(z)
        else:
            mask = F.pad(torch.ones_like(made[:1, :1]), (left, side - right, top, side - bottom))
        sample = torch.where(mask > 0, whole + mask * (laid - whole), whole)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def windows(self, z: torch.Tensor, face: torch.Tensor) -> torch.Tensor:
        """Lower faces [B, 3, w, w] of latents [B, C, h, h] with the detail of one of the person [B or 1, 3, w, w]."""
        soft = self.soft(self.encoder(face))
        made, detail, soft = torch.broadcast_tensors(self.soft(z), face - soft, soft)
        return made + detail + self.decoder(made + self._to_known(face), detail, made - soft)

    def _to_known(self, face: torch.Tensor) -> torch.Tensor:
        """What brings the colour of windows [B, 3, w, w] to the nearest that is known: [B, 3, 1, 1]."""
        means = face.mean(dim=(2, 3))
        if self.config.known_chroma is None:
            return torch.zeros_like(means)[..., None, None]
        chroma = means @ means.new_tensor(_CHROMA).T
        least, most = chroma.new_tensor(self.config.known_chroma).T
        # Luma stays: the shift is the one of colours with Y = 0.
        moved = chroma.clamp(least, most) - chroma
        return (moved @ moved.new_tensor(_OF_CHROMA).T)[..., None, None]

    def side(self, cells: int) -> int:
        """Pixels a side of the lower face of so many latent cells."""
        return cells * int(self.config.patch)

    def soft(self, z: torch.Tensor) -> torch.Tensor:
        """Lower faces [B, 3, w, w] of latents [B, C, h, h] without the decoder's network: the transform turned back."""
        return F.conv_transpose2d(z, self.encoder.weight, stride=self.config.patch)

    def forward(self, sample: torch.Tensor) -> DecoderOutput:
        return DecoderOutput(sample=self.decode(self.encode(sample).latents, sample).sample)


class ReferenceDecoder(nn.Module):
    """What to add to a window, from the window itself, the reference's detail, and how far the mouth is from it."""

    def __init__(self, width: int, deep: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(9 * FOLD**2, width, 3, padding=1)
        self.before = nn.ModuleList(Residual(width) for _ in range(2))
        self.down = nn.Conv2d(width, deep, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(Residual(deep) for _ in range(3))
        self.up = nn.Conv2d(deep, width, 3, padding=1)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.after = nn.ModuleList(Residual(width) for _ in range(2))
        self.norm_out = nn.GroupNorm(8, width)
        self.conv_out = nn.Conv2d(width, 3 * FOLD**2, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, made: torch.Tensor, detail: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """All float [B, 3, w, w], w a multiple of 8."""
        hidden = self.conv_in(F.pixel_unshuffle(torch.cat([made, detail, moved], dim=1), FOLD))
        for block in self.before:
            hidden = block(hidden)
        deep = self.down(hidden)
        for block in self.middle:
            deep = block(deep)
        up = self.up(F.interpolate(deep, scale_factor=2.0, mode="nearest"))
        hidden = self.join(torch.cat([hidden, up], dim=1))
        for block in self.after:
            hidden = block(hidden)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(hidden))), FOLD)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = hidden
        for norm, conv in zip(self.norms, self.convs, strict=True):
            inner = conv(F.silu(norm(inner)))
        return hidden + inner / math.sqrt(2)
