"""The denoiser: a small video U-Net whose every residual block is scaled and shifted by the sound of its frame.

What made faces speak in trials on two cores, and what is therefore here: the network works on the *residual* of each
frame's latent on the reference frame's latent, in units of that residual's standard deviation, so background, hair and
identity come for free. Sound enters by FiLM (it is added to the timestep embedding that scales and shifts each block)
and as a picture: the rough motion that it alone suggests (`speech_motion`, which has a loss of its own and learns in
seconds what the U-Net alone had not found after five minutes). Blocks are two-dimensional per frame, each followed by a
three-tap convolution over time that starts at zero. Built from diffusers' residual blocks.
"""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import nn

PREDICTION_TYPES = ("sample", "v_prediction", "epsilon")
"""What a denoiser may be trained to predict, in diffusers' words: x0, v, or the noise."""


class TalkingHeadDenoiser(ModelMixin, ConfigMixin):
    """Predicts a window of frames from noise, sound and one reference frame.

    Shapes: B windows of T frames, C latent channels of h x w cells. `prediction_type` says what the output means
    ("sample" is x0) and is stored so that a pipeline's scheduler agrees.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        latent_size: int = 16,
        widths: tuple[int, ...] = (48, 80, 112),
        blocks_per_level: int = 1,
        speech_hops: int = 20,
        mel_bins: int = 40,
        window: int = 8,
        prediction_type: str = "sample",
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type is {prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}")
        embedding = 2 * widths[-1]
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], embedding)
        self.speech_encoder = SpeechEncoder(speech_hops, mel_bins, embedding)
        self.silence = nn.Parameter(torch.zeros(embedding))
        self.speech_map = SpeechMap(embedding, latent_channels, latent_size)
        self.conv_in = nn.Conv2d(3 * latent_channels, widths[0], 3, padding=1)
        # Crops are aligned, so a cell's place says what part of the face it is.
        self.position = nn.Parameter(torch.zeros(1, widths[0], latent_size, latent_size))

        self.down_blocks = nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level, out in enumerate(widths):
            for _ in range(blocks_per_level):
                self.down_blocks.append(FrameBlock(width, out, embedding))
                width = out
                skips.append(width)
            if level < len(widths) - 1:
                self.down_blocks.append(Downsample2D(width, use_conv=True, name="op"))
                skips.append(width)
        self.mid_block = FrameBlock(width, width, embedding)
        self.up_blocks = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(blocks_per_level + 1):
                self.up_blocks.append(FrameBlock(width + skips.pop(), out, embedding))
                width = out
            if level > 0:
                self.up_blocks.append(Upsample2D(width, use_conv=True))
        self.norm_out = nn.GroupNorm(8, width)
        self.conv_out = nn.Conv2d(width, latent_channels, 3, padding=1)
        _start_at_zero(self.conv_out)

        self.reference_mean: torch.Tensor
        self.reference_std: torch.Tensor
        self.residual_std: torch.Tensor
        self.register_buffer("reference_mean", torch.zeros(latent_channels))
        self.register_buffer("reference_std", torch.ones(latent_channels))
        self.register_buffer("residual_std", torch.ones(latent_channels))
        self.gradient_checkpointing = False

    def set_statistics(self, latents: torch.Tensor, residuals: torch.Tensor) -> None:
        """Fix the units: from latents [N, C, h, w] of frames and residuals [N, C, h, w] of frames on references."""
        self.reference_mean.copy_(latents.mean((0, 2, 3)))
        self.reference_std.copy_(latents.std((0, 2, 3)).clamp(min=1e-3))
        self.residual_std.copy_(residuals.std((0, 2, 3)).clamp(min=1e-3))

    def to_residual(self, latents: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Latents [B, T, C, h, w] as residuals on the reference [B, C, h, w], in standard deviations."""
        return (latents - reference[:, None]) / self.residual_std[:, None, None]

    def from_residual(self, residual: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_residual`."""
        return residual * self.residual_std[:, None, None] + reference[:, None]

    def speech_motion(self, speech: torch.Tensor) -> torch.Tensor:
        """The motion that the sound alone suggests: residuals [B, T, C, h, w] in standard deviations."""
        return self.speech_map(self.speech_encoder(speech))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        speech: torch.Tensor,
        reference: torch.Tensor,
        heard: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict, for noisy residuals `sample` [B, T, C, h, w], what `prediction_type` says, in the same shape.

        timestep: int [B]. speech: [B, T, hops, mel] log-mel windows (`data.speech`). reference: latents [B, C, h, w].
        heard: bool [B]; where False the sound is replaced by a learned "no sound", for classifier-free guidance.
        """
        batch, frames = sample.shape[:2]
        sound = self.speech_encoder(speech)
        if heard is not None:
            sound = torch.where(heard[:, None, None], sound, self.silence)
        time = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        embedding = (time[:, None] + sound).flatten(0, 1)

        face = (reference - self.reference_mean[:, None, None]) / self.reference_std[:, None, None]
        face = face[:, None].expand(-1, frames, -1, -1, -1)
        motion = self.speech_map(sound)
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
        # An x0 network only has to correct what the sound alone suggests: it follows the sound from its first step on.
        return output + motion if self.config.prediction_type == "sample" else output

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

    def __init__(self, channels: int, out_channels: int, embedding: int) -> None:
        super().__init__()
        self.spatial = ResnetBlock2D(
            in_channels=channels,
            out_channels=out_channels,
            temb_channels=embedding,
            groups=8,
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


def _start_at_zero(layer: nn.Conv2d) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class SpeechEncoder(nn.Module):
    """One log-mel window a frame [B, T, hops, mel] to one embedding a frame [B, T, E]."""

    def __init__(self, hops: int, mel_bins: int, embedding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(mel_bins, 96, 5, padding=2)
        self.conv2 = nn.Conv1d(96, 96, 5, stride=2, padding=2)
        self.conv3 = nn.Conv1d(96, 96, 3, stride=2, padding=1)
        self.linear1 = nn.Linear(96 * -(-hops // 4), embedding)
        self.linear2 = nn.Linear(embedding, embedding)

    def forward(self, speech: torch.Tensor) -> torch.Tensor:
        hidden = speech.flatten(0, 1).transpose(1, 2)
        for layer in (self.conv1, self.conv2, self.conv3):
            hidden = nn.functional.silu(layer(hidden))
        hidden = nn.functional.silu(self.linear1(hidden.flatten(1)))
        return self.linear2(hidden).unflatten(0, speech.shape[:2])


class SpeechMap(nn.Module):
    """Speech embeddings [B, T, E] to motion pictures [B, T, C, h, w], through a few shared motion patterns."""

    def __init__(self, embedding: int, channels: int, size: int, patterns: int = 32) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        self.linear1 = nn.Linear(embedding, patterns)
        self.linear2 = nn.Linear(patterns, channels * size * size)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        return self.linear2(self.linear1(nn.functional.silu(sound))).unflatten(2, self.shape)
