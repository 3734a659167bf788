"""MuseTalk 1.5 as a backbone: stock networks of diffusers that speak and are taught as this project's own are.

The U-Net is Stable Diffusion 1.4's with eight channels in: latents of the frame without its lower half, and of a
reference picture of the person. It sees no noise: one pass, at timestep 0, is the frame, whatever the steps. Sound is
fifty tokens (`media.whisper_states`) with a sinusoidal position code, which the published trainer leaves out and the
published inference adds; here both add it. Weights have their published names, so stock diffusers loads what is saved.
"""

from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel  # noqa: F401 (pipelines look for ModelMixin beside a class)
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput

from fedtalk_ray.media.whisper_states import HOPS, LAYERS, TOKEN_WIDTH
from fedtalk_ray.model.backbone_base import PlainLatents

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ALL_LAYERS = (
    *ATTENTION,
    *("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj"),
)
"""Layers that carry LoRA, by the ends of their names: attention alone, or every layer of the blocks."""

CELL = 4
"""Latent channels of one picture."""


class MuseTalkDenoiser(PlainLatents, UNet2DConditionModel):
    """Frames out of their upper halves, a reference and the sound; window, sound and faces as in `TalkingHeadDenoiser`.

    `sample` is [B, T, 8, h, w], of which the last four channels are the latents of the frame without its lower half;
    `reference` [B, 8, h, w], as `MuseTalkAutoencoder` encodes a face.
    """

    adapter_layers = ALL_LAYERS
    taught_on = "pixels"
    each_frame_alone = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 2 * CELL,
        out_channels: int = CELL,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1.0,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = TOKEN_WIDTH,
        attention_head_dim: int = 8,
        latent_size: int = 32,
        window: int = 4,
        speech: str = "musetalk",
        framing: str = "musetalk",
        latent_channels: int = CELL,
        given_channels: int = CELL,
        speech_hops: int = HOPS,
        mel_bins: int = LAYERS * TOKEN_WIDTH,
        prediction_type: str = "sample",
        identity: str = "none",
        identity_dimensions: int = 0,
    ) -> None:
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            center_input_sample=center_input_sample,
            flip_sin_to_cos=flip_sin_to_cos,
            freq_shift=freq_shift,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            downsample_padding=downsample_padding,
            mid_block_scale_factor=mid_block_scale_factor,
            act_fn=act_fn,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=attention_head_dim,
        )

    @classmethod
    def extract_init_dict(cls, config_dict: Any, **options: Any) -> Any:
        """Without what the stock class could be besides, which it registers too and would warn of."""
        besides = UNet2DConditionModel._get_init_keys(UNet2DConditionModel) - cls._get_init_keys(cls)
        own = {name: value for name, value in config_dict.items() if name not in besides}
        return super().extract_init_dict(own, **options)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        speech: torch.Tensor,
        reference: torch.Tensor,
        heard: torch.Tensor | None = None,
        identity: torch.Tensor | None = None,
        lips: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Latents [B, T, 4, h, w] of the frames. speech: [B, T, hops, layers * width]. Whatever the timestep, it is 0;
        face embeddings and told lips are not known here."""
        batch, frames = sample.shape[:2]
        tokens = speech.reshape(batch * frames, -1, int(self.config.cross_attention_dim))
        if heard is not None:
            tokens = tokens * heard.repeat_interleave(frames)[:, None, None]
        tokens = tokens + position_code(tokens.shape[1], tokens.shape[2]).to(tokens)
        face = reference[:, None, :CELL].expand(-1, frames, -1, -1, -1)
        pictures = torch.cat([sample[:, :, CELL:], face], dim=2).flatten(0, 1)
        made = super().forward(pictures, 0, encoder_hidden_states=tokens).sample
        return made.unflatten(0, (batch, frames))


class MuseTalkAutoencoder(AutoencoderKL):
    """Stable Diffusion's autoencoder (sd-vae-ft-mse), which encodes a face twice: whole, and without its lower half.

    Latents are [B, 8, h, w]: four channels of the face, four of the same with every pixel from half its height on set
    to -1, black. Decoding takes the first four alone.
    """

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        upper = x.clone()
        upper[..., x.shape[-2] // 2 :, :] = -1.0
        codes = [super(MuseTalkAutoencoder, self).encode(each).latent_dist.mode() for each in (x, upper)]
        latents = torch.cat(codes, dim=1)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        return super().decode(z[:, :CELL], return_dict, generator)


@cache
def position_code(length: int, width: int) -> torch.Tensor:
    """Sines and cosines float32 [length, width] (Vaswani et al. 2017), even columns and odd ones."""
    place = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2).float() * (-torch.log(torch.tensor(10000.0)) / width))
    code = torch.zeros(length, width)
    code[:, 0::2], code[:, 1::2] = torch.sin(place * rate), torch.cos(place * rate)
    return code
