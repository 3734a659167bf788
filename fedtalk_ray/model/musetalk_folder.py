"""MuseTalk 1.5 in its own folder layout, read as a pipeline of this project.

    FOLDER/musetalkV15/unet.pth      FOLDER/musetalkV15/musetalk.json
    FOLDER/sd-vae/                   config.json, diffusion_pytorch_model.bin or .safetensors
    FOLDER/whisper/                  Whisper-tiny as transformers saves it

What a run saves from it is an ordinary pipeline. **Published weights were not run here**: names, shapes and counts are
those of the published code, and tests have small random weights.
"""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from fedtalk_ray.errors import RunError
from fedtalk_ray.media.whisper_states import PREFIX, TOKEN_WIDTH
from fedtalk_ray.model.musetalk_networks import CELL, MuseTalkAutoencoder, MuseTalkDenoiser

UNET, UNET_CONFIG = Path("musetalkV15") / "unet.pth", Path("musetalkV15") / "musetalk.json"
VAE, WHISPER = "sd-vae", "whisper"

_PART_OF_UNET = {
    **{"in_channels": 2 * CELL, "out_channels": CELL, "cross_attention_dim": TOKEN_WIDTH, "attention_head_dim": 8},
    **{"center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "act_fn": "silu"},
}


def is_musetalk(folder: Path) -> bool:
    """Whether a folder is laid out as MuseTalk 1.5's `models/` is."""
    return (folder / UNET).is_file() or (folder / UNET_CONFIG).is_file()


def speech_of(folder: Path) -> str:
    """The source of sound features that the folder's U-Net hears."""
    return f"{PREFIX}{(folder / WHISPER).resolve()}"


def read_unet(folder: Path, latent_size: int) -> MuseTalkDenoiser:
    """The U-Net for faces of so many latent cells a side. Raises `RunError` for what is no MuseTalk 1.5."""
    config = _unet_config(folder / UNET_CONFIG)
    try:
        with torch.device("meta"):
            denoiser = MuseTalkDenoiser(**config, latent_size=latent_size, speech=speech_of(folder))
    except (ValueError, TypeError) as error:
        raise RunError(f"{folder / UNET_CONFIG} describes no U-Net: {_line(error)}") from error
    weights = _weights(folder / UNET)
    expected = denoiser.state_dict()
    for word, names in (("lacks", expected.keys() - weights), ("holds an unknown", weights.keys() - expected)):
        if names:
            raise RunError(f"{folder / UNET} {word} tensor {min(names)}; {len(expected)} of MuseTalk 1.5 are needed")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise RunError(
                f"{folder / UNET}: tensor {name} is {list(tensor.shape)}, and by musetalk.json "
                f"{list(expected[name].shape)}"
            )
    denoiser.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return denoiser.eval()


def read_autoencoder(folder: Path) -> MuseTalkAutoencoder:
    """The autoencoder, in evaluation mode. Raises `RunError` for what is not Stable Diffusion's."""
    place = folder / VAE
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        name = config.get("_class_name")
        if name != "AutoencoderKL" or config.get("latent_channels") != CELL:
            raise RunError(
                f"{place} holds {name} of {config.get('latent_channels')} latent channels; MuseTalk needs "
                f"AutoencoderKL of {CELL}, sd-vae-ft-mse"
            )
        found, report = MuseTalkAutoencoder.from_pretrained(str(place), output_loading_info=True)
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise RunError(f"{place} holds no autoencoder that can be loaded: {_line(error)}") from error
    if lacking := report["missing_keys"]:
        raise RunError(f"{place} lacks tensor {min(lacking)} of its autoencoder")
    return found.eval()


def cells_of(autoencoder: MuseTalkAutoencoder) -> int:
    """Latent cells a side of the pictures that an autoencoder is for."""
    config: Any = autoencoder.config
    return int(config.sample_size) // 2 ** (len(config.block_out_channels) - 1)


def _unet_config(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {_line(error)}") from error
    if not isinstance(tree, dict):
        raise RunError(f"{path} is no configuration of a U-Net")
    for name, wanted in _PART_OF_UNET.items():
        if tree.get(name) != wanted:
            raise RunError(f"{path}: {name} is {tree.get(name)}; MuseTalk 1.5 has {wanted}")
    known = set(UNet2DConditionModel._get_init_keys(UNet2DConditionModel))
    known &= set(MuseTalkDenoiser._get_init_keys(MuseTalkDenoiser))
    settings = {name: value for name, value in tree.items() if not name.startswith("_")}
    if unknown := sorted(settings.keys() - known):
        raise RunError(f"{path}: {unknown[0]} is no setting of MuseTalk 1.5's U-Net")
    return settings


def _weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        # Tensors alone: a pickle could hold anything. Files of old versions of torch cannot be mapped.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise RunError(f"{path} holds no tensors that can be read: {_line(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise RunError(f"{path} is no plain table of tensors")
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
