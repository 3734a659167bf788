"""MuseTalk's folder layout with small random weights: the same classes and names, few channels, faces of 64 pixels."""

import json
from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from fedtalk_ray.model.musetalk_memory import Sizes, make_autoencoder, make_unet

PIXELS = 64
SIZES = Sizes((32, 32, 32, 32), (16, 16, 16, 16), 8, layers=1)


def write_musetalk(folder: Path, seed: int = 0) -> Path:
    """`folder` as MuseTalk 1.5's `models/` is laid out; of Whisper-tiny the decoder is small."""
    torch.manual_seed(seed)
    unet, autoencoder = make_unet(SIZES), make_autoencoder(SIZES, PIXELS)
    (folder / "musetalkV15").mkdir(parents=True)
    torch.save(unet.state_dict(), folder / "musetalkV15" / "unet.pth")
    (folder / "musetalkV15" / "musetalk.json").write_text(json.dumps(published_config(unet)))
    autoencoder.save_pretrained(folder / "sd-vae")
    sizes = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 64}
    small = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 20}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    WhisperModel(WhisperConfig(**sizes, **small, **tokens)).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "whisper")
    return folder


def published_config(unet: torch.nn.Module) -> dict:
    """The keys that the published `musetalk.json` has, with this U-Net's sizes."""
    names = (
        *("act_fn", "attention_head_dim", "block_out_channels", "center_input_sample", "cross_attention_dim"),
        *("down_block_types", "downsample_padding", "flip_sin_to_cos", "freq_shift", "in_channels"),
        *("layers_per_block", "mid_block_scale_factor", "norm_eps", "norm_num_groups", "out_channels"),
        *("sample_size", "up_block_types"),
    )
    return {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0"} | {
        name: unet.config[name] for name in names
    }
