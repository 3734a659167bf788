"""The denoiser: a small video U-Net whose every residual block is scaled and shifted by the sound of its frame.

What made faces speak in trials on two cores, and what is therefore here: the network works on the *residual* of
each frame's latent on the reference frame's latent, in units of that residual's standard deviation, so background,
hair and identity come for free. Sound passes a bottleneck of a few numbers a frame, the *motion code*, which a
regression of its own teaches (the phase `speech`): with more the U-Net knows training clips by their sound
and its lips do not generalise. Its first numbers are the shape of the lips, which means the same on every face. The
code enters by FiLM (added to the timestep embedding that scales and shifts each block) and as a picture, the rough
motion: the reference bent to the shape of the lips, of latents that can be bent (`bending`), else what the code alone
suggests. A network that is left to move lips by itself fades one mouth into another. Blocks are two-dimensional per
frame, each followed by a three-tap convolution over time that starts at zero. Built from diffusers' residual blocks.
"""

from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import nn

from fedtalk_ray.model.bending import LatentBend, lower_flow
from fedtalk_ray.model.open_mouth import OpenMouth
from fedtalk_ray.model.speech_code import CodedDenoiser

PREDICTION_TYPES = ("sample", "v_prediction", "epsilon")
"""What a denoiser may be trained to predict, in diffusers' words: x0, v, or the noise."""


class TalkingHeadDenoiser(CodedDenoiser, ModelMixin, ConfigMixin):
    """Predicts a window of frames from noise, sound and one reference frame.

    Shapes: B windows of T frames, C latent channels of h x w cells. `prediction_type` says what the output means
    ("sample" is x0) and is stored so that a pipeline's scheduler agrees. `speech` names the features that `speech_hops`
    and `mel_bins` are the shape of, `identity` the face embedding of `identity_dimensions` numbers (0: none), `region`
    the part of the crop that latents are of (`face_template.REGIONS`). Of the
    `motions` numbers of a motion code the first `lip_numbers` are a lip shape (`MotionUnits.lip_shape`).
    `reference_lips`: it can be told the reference's own lip shape (`see_reference_lips`). `bends`: the transform that
    latents are of, (patch, luma, chroma), where it works on the reference bent to each frame's lips (`bend_latents`).
    `linear_hearing`: lip shapes are a linear map of the sound (`speech_code.LipRegression`). `opens`: opened lips
    of a bent reference show an inside (`open_mouth.OpenMouth`).
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        latent_size: int = 16,
        widths: tuple[int, ...] = (48, 80, 112),
        blocks_per_level: int = 1,
        speech_hops: int = 44,
        mel_bins: int = 40,
        motions: int = 8,
        lip_numbers: int = 6,
        window: int = 8,
        dropout: float = 0.1,
        prediction_type: str = "sample",
        speech: str = "log-mel",
        identity: str = "none",
        identity_dimensions: int = 0,
        region: str = "face",
        reference_lips: bool = False,
        bends: tuple[int, int, int] | None = None,
        linear_hearing: bool = False,
        opens: bool = False,
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type is {prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}")
        embedding = 2 * widths[-1]
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], embedding)
        numbers = latent_channels, latent_size, motions, lip_numbers, speech_hops, mel_bins
        self.add_parts(*numbers, region, linear_hearing)
        self.speech_embedding = TimestepEmbedding(motions, embedding)
        self.identity_embedding = nn.Linear(identity_dimensions, embedding) if identity_dimensions else None
        if self.identity_embedding is not None:
            _start_at_zero(self.identity_embedding)
        self.reference_embedding = _reference_embedding(lip_numbers, embedding) if reference_lips else None
        self.latent_bend = LatentBend(*bends) if bends else None
        if opens:
            self.open_mouth = OpenMouth(lip_numbers)
        self.conv_in = nn.Conv2d(3 * latent_channels, widths[0], 3, padding=1)
        # Crops are aligned, so a cell's place says what part of the face it is.
        self.position = nn.Parameter(torch.zeros(1, widths[0], latent_size, latent_size))

        self.down_blocks = nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level, out in enumerate(widths):
            for _ in range(blocks_per_level):
                self.down_blocks.append(FrameBlock(width, out, embedding, dropout))
                width = out
                skips.append(width)
            if level < len(widths) - 1:
                self.down_blocks.append(Downsample2D(width, use_conv=True, name="op"))
                skips.append(width)
        self.mid_block = FrameBlock(width, width, embedding, dropout)
        self.up_blocks = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(blocks_per_level + 1):
                self.up_blocks.append(FrameBlock(width + skips.pop(), out, embedding, dropout))
                width = out
            if level > 0:
                self.up_blocks.append(Upsample2D(width, use_conv=True))
        self.norm_out = nn.GroupNorm(8, width)
        self.conv_out = nn.Conv2d(width, latent_channels, 3, padding=1)
        _start_at_zero(self.conv_out)

        self.gradient_checkpointing = False

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        speech: torch.Tensor,
        reference: torch.Tensor,
        heard: torch.Tensor | None = None,
        identity: torch.Tensor | None = None,
        lips: torch.Tensor | None = None,
        reference_lips: torch.Tensor | None = None,
        bent: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict, for noisy residuals `sample` [B, T, C, h, w], what `prediction_type` says, in the same shape.

        timestep: int [B]. speech: [B, T, hops, mel] log-mel windows (`media.speech`). reference: latents [B, C, h, w].
        heard: bool [B]; where False the sound is replaced by a learned "no sound", for classifier-free guidance.
        identity: [B, D] face embeddings, for a network that was made with `identity_dimensions` D; others ignore them.
        lips: [B, T, lip_numbers] true lip shapes, in place of those that the sound suggests; NaN keeps the heard ones.
        reference_lips: [B, lip_numbers], the reference's own lip shape, NaN where a number is not known; for a network
        that takes it, others ignore it.
        bent: latents [B, T, C, h, w], the reference with each frame's lips (`latent_bend`); for a network that takes
        them, others ignore them.
        """
        batch, frames = sample.shape[:2]
        sound = self.codes(speech, heard, lips)
        time = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        if self.identity_embedding is not None and identity is not None:
            time = time + self.identity_embedding(identity)
        if self.reference_embedding is not None and reference_lips is not None:
            known = (~reference_lips.isnan()).to(time.dtype)
            time = time + self.reference_embedding(torch.cat([known, reference_lips.nan_to_num()], dim=-1))
        embedding = (time[:, None] + self.speech_embedding(sound)).flatten(0, 1)

        face = (reference - self.reference_mean[:, None, None]) / self.reference_std[:, None, None]
        face = face[:, None].expand(-1, frames, -1, -1, -1)
        motion = self._motion(sound, sample, reference, heard, bent)
        hidden = self.conv_in(torch.cat([sample, face, motion], dim=2).flatten(0, 1)) + self.position
        skips = [hidden]
        for block in self.down_blocks:
            hidden = self._run(block, hidden, embedding, frames)
            skips.append(hidden)
        hidden = self._run(self.mid_block, hidden, embedding, frames)
        for block in self.up_blocks:
            if isinstance(block, FrameBlock):
                hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = self._run(block, hidden, embedding, frames)
        output = self.conv_out(nn.functional.silu(self.norm_out(hidden))).unflatten(0, (batch, frames))
        # An x0 network only has to correct the rough motion: it follows the sound from its first step on.
        return output + motion if self.config.prediction_type == "sample" else output

    def _motion(
        self,
        sound: torch.Tensor,
        sample: torch.Tensor,
        reference: torch.Tensor,
        heard: torch.Tensor | None,
        bent: torch.Tensor | None,
    ) -> torch.Tensor:
        """The rough motion, residuals [B, T, C, h, w]: of the bent reference, or what the sound alone suggests."""
        if self.latent_bend is None:
            return self.speech_map(sound)
        if bent is None:
            return torch.zeros_like(sample)
        motion = self.to_residual(bent, reference).to(sample.dtype)
        return motion if heard is None else motion * heard[:, None, None, None, None]

    def flows(self, points: np.ndarray, change: torch.Tensor) -> torch.Tensor:
        """What bends a reference to lips of other shapes: flows [T, 2, c, c] on the CPU (`bending.lower_flow`).

        points: of its face [68, 2], in fractions of the crop. change: of the lip shape [T, lip_numbers], in standard
        deviations. Where either is not known (NaN) nothing moves.
        """
        return lower_flow(points, self.mouth_moves(change).double().cpu().numpy())

    def laid(
        self, reference: torch.Tensor, points: np.ndarray, own: torch.Tensor, shapes: torch.Tensor
    ) -> torch.Tensor | None:
        """What is laid over a reference [C, h, w] that is bent from its own lip shape [L] to others [T, L], on the CPU
        (`OpenMouth.laid`); None where it is not known what opened lips show."""
        if self.open_mouth is None or not self.open_mouth.known():
            return None
        assert self.latent_bend is not None
        soft = self.latent_bend.soft(reference[None].to(self.device))[0]
        moves = self.mouth_moves(shapes - own).double().cpu().numpy()
        return self.open_mouth.laid(soft, points, moves, shapes.to(self.device)).cpu()

    def takes_bent(self) -> bool:
        return self.latent_bend is not None

    def bend_latents(self, patch: int, luma: int, chroma: int) -> None:
        """From now on works on the bent reference, of latents of this transform; it has to be trained anew for that."""
        self.latent_bend = LatentBend(patch, luma, chroma).to(self.device)
        self.register_to_config(bends=(patch, luma, chroma))

    def show_open_mouths(self) -> None:
        """From now on can be taught what opened lips show (`training.phases.mouths`); until it is that changes
        nothing."""
        if self.open_mouth is None:
            self.open_mouth = OpenMouth(int(self.config.lip_numbers)).to(self.device)
            self.register_to_config(opens=True)

    def takes_reference_lips(self) -> bool:
        return self.reference_embedding is not None

    def see_reference_lips(self) -> None:
        """From now on can be told the reference's lip shape; until it is trained that changes nothing.

        Lip shapes count from where a mouth habitually sits, and a picture alone does not say how far from there it is.
        """
        if self.reference_embedding is None:
            layer = _reference_embedding(int(self.config.lip_numbers), self.time_embedding.linear_2.out_features)
            self.reference_embedding = layer.to(self.device, self.dtype).train(self.training)
            self.register_to_config(reference_lips=True)

    def _run(self, block: nn.Module, hidden: torch.Tensor, embedding: torch.Tensor, frames: int) -> torch.Tensor:
        if not isinstance(block, FrameBlock):
            return block(hidden)
        if self.training and self.gradient_checkpointing:
            return torch.utils.checkpoint.checkpoint(block, hidden, embedding, frames, use_reentrant=False)
        return block(hidden, embedding, frames)


def bare_denoiser(model: Any) -> TalkingHeadDenoiser:
    """The `TalkingHeadDenoiser` itself, out of a PEFT model if it is in one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class FrameBlock(nn.Module):
    """diffusers' residual block on each frame, then a three-tap convolution over time, zero at the start."""

    def __init__(self, channels: int, out_channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.spatial = ResnetBlock2D(
            in_channels=channels,
            out_channels=out_channels,
            temb_channels=embedding,
            groups=8,
            dropout=dropout,
            time_embedding_norm="scale_shift",
        )
        self.temporal = nn.Conv2d(out_channels, out_channels, (3, 1), padding=(1, 0))
        _start_at_zero(self.temporal)

    def forward(self, hidden: torch.Tensor, embedding: torch.Tensor, frames: int) -> torch.Tensor:
        """hidden: [B * T, C, h, w]; embedding: [B * T, E]."""
        hidden = self.spatial(hidden, embedding)
        height, width = hidden.shape[-2:]
        over_time = hidden.unflatten(0, (-1, frames)).flatten(3).transpose(1, 2)  # [B, C, T, h * w]
        moved = self.temporal(nn.functional.silu(over_time))
        return hidden + moved.transpose(1, 2).unflatten(3, (height, width)).flatten(0, 1)


def _reference_embedding(lip_numbers: int, width: int) -> nn.Linear:
    """Of which numbers are known, and of these. Without a bias: nothing known is as if nothing was told."""
    layer = nn.Linear(2 * lip_numbers, width, bias=False)
    _start_at_zero(layer)
    return layer


def _start_at_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
