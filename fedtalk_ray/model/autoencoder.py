"""Pictures to latents and back: a patch autoencoder of our own, or any autoencoder of diffusers.

`PatchAutoencoder` needs no training to be useful: its encoder is a fixed orthonormal transform (4x4 cosine basis times
an opponent-colour basis, the 16 of 48 coefficients that carry most of a face), so shards can be prepared before
anything was trained, and stay valid while `fedtalk pretrain` improves the decoder. `encoder_fingerprint` names exactly
the part that shards depend on.
"""

import hashlib
from typing import Any, TypeGuard

import diffusers
import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import nn

from fedtalk_ray.errors import UserError
from fedtalk_ray.model.embedded import find_model
from fedtalk_ray.model.lower_face import SKINS, LowerFaceAutoencoder
from fedtalk_ray.model.musetalk_folder import is_musetalk, read_autoencoder
from fedtalk_ray.model.musetalk_networks import MuseTalkAutoencoder
from fedtalk_ray.model.patch_basis import patch_encoder

WHOLE_FACE = "patch"
"""The name under which commands and configurations ask for a fresh `PatchAutoencoder`."""
LOWER_FACE = "lower-face"
"""The name of a fresh `LowerFaceAutoencoder`."""


class AutoencoderError(UserError):
    """No usable autoencoder at the given path or hub id; the message is one line."""


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Cosine patch encoder, and a decoder that inverts it and then adds detail with a small residual network.

    Interface of diffusers' `AutoencoderTiny`: pictures are float [B, 3, H, W] in [-1, 1], latents
    [B, latent_channels, H/4, W/4]. Latents are orthonormal coefficients: their squared error is the pixels'.
    """

    @register_to_config
    def __init__(
        self,
        patch: int = 4,
        luma_coefficients: int = 10,
        chroma_coefficients: int = 3,
        decoder_width: int = 32,
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = patch_encoder(patch, luma_coefficients, chroma_coefficients)
        self.latent_channels = self.encoder.out_channels
        self.decoder = nn.Sequential(
            nn.Conv2d(self.latent_channels, 2 * decoder_width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * decoder_width, 2 * decoder_width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * decoder_width, 3 * patch * patch, 3, padding=1),
            nn.PixelShuffle(patch),
        )
        # Untrained, the decoder is the transform's exact inverse on what the encoder kept.
        for parameter in self.decoder[-2].parameters():
            nn.init.zeros_(parameter)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        latents = self.encoder(x)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> Any:
        linear = nn.functional.conv_transpose2d(z, self.encoder.weight, stride=self.config.patch)
        sample = linear + self.decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: torch.Tensor) -> DecoderOutput:
        return DecoderOutput(sample=self.decode(self.encode(sample).latents).sample)


OWN_AUTOENCODERS = (PatchAutoencoder, LowerFaceAutoencoder, MuseTalkAutoencoder)


def sees_reference(autoencoder: Any) -> TypeGuard[LowerFaceAutoencoder]:
    """Whether it decodes onto a picture of the person, and takes detail from it."""
    return isinstance(autoencoder, LowerFaceAutoencoder)


def region_of(autoencoder: ModelMixin) -> str:
    """What part of a crop its latents are of (`face_template.REGIONS`)."""
    return getattr(autoencoder, "region", "face")


def load_autoencoder(source: str) -> ModelMixin:
    """A fresh one of ours for "patch" and "lower-face", else the one at a local folder or hub id; in evaluation mode.

    The folder may be an autoencoder's own or a pipeline's (its `autoencoder/` or `vae/` is taken), "fedtalk-tiny" the
    embedded one's. Any diffusers class with `encode` and `decode` works (`AutoencoderKL`, `AutoencoderTiny`, ...).
    Raises `AutoencoderError`.
    """
    if source in (WHOLE_FACE, LOWER_FACE):
        # The decoder starts from a seed, so that two fresh autoencoders are the same one.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return (PatchAutoencoder() if source == WHOLE_FACE else LowerFaceAutoencoder(known_chroma=SKINS)).eval()
    folder = find_model(source)
    if is_musetalk(folder):
        return read_autoencoder(folder)
    for name in ("autoencoder", "vae"):
        if (folder / name / "config.json").is_file():
            folder = folder / name
    try:
        config = PatchAutoencoder.load_config(str(folder) if folder.is_dir() else source)
        name = config.get("_class_name", "") if isinstance(config, dict) else ""
        model_class = {each.__name__: each for each in OWN_AUTOENCODERS}.get(name) or getattr(diffusers, name, None)
        if model_class is None or not hasattr(model_class, "decode"):
            raise AutoencoderError(f"{source}: holds {name or 'no class name'}, which is no autoencoder of diffusers")
        return model_class.from_pretrained(str(folder) if folder.is_dir() else source).eval()
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise AutoencoderError(
            f'autoencoder {source!r} cannot be loaded: {reason} Give "lower-face", "patch", a folder written by '
            "save_pretrained, or a hub id."
        ) from error


def encode_frames(autoencoder: ModelMixin, frames: np.ndarray, batch: int = 32) -> np.ndarray:
    """Scaled latents, float32 [T, C, h, w], of frames uint8 [T, S, S, 3]; the mode where the encoder is stochastic."""
    latents = []
    with torch.inference_mode():
        for begin in range(0, len(frames), batch):
            pixels = frames_to_pixels(frames[begin : begin + batch]).to(autoencoder.device, autoencoder.dtype)
            latents.append(encode_pixels(autoencoder, pixels).float().cpu().numpy())
    return np.concatenate(latents)


@torch.no_grad()
def encode_pixels(autoencoder: ModelMixin, pixels: torch.Tensor) -> torch.Tensor:
    """Scaled latents [T, C, h, w] of pixels [T, 3, S, S] in [-1, 1]; the mode where the encoder is stochastic."""
    encoded = autoencoder.encode(pixels)
    code = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return code * scaling_factor(autoencoder)


def decode_latents(
    autoencoder: ModelMixin,
    latents: torch.Tensor,
    batch: int = 32,
    *,
    face: np.ndarray | None = None,
    detail: torch.Tensor | None = None,
    soft_border: bool = True,
    bent: torch.Tensor | None = None,
) -> np.ndarray:
    """Frames uint8 [T, S, S, 3] of scaled latents float [T, C, h, w].

    face: the person's reference crop, uint8 [S, S, 3], for an autoencoder that takes detail from it; others ignore it.
    soft_border: what was made passes softly into the rest of that crop, else with an edge. detail: pixels [3, S, S] on
    the scale of [-1, 1], added to every frame. bent: of every frame the reference's lower face with its lips, pixels
    [T, 3, w, w] on the same scale, to take detail from in its place.
    """
    reference = None if face is None else frames_to_pixels(face[None])
    pieces = []
    with torch.inference_mode():
        for begin in range(0, len(latents), batch):
            part = slice(begin, begin + batch)
            given = reference, soft_border, None if bent is None else bent[part]
            pixels = decode_pixels(autoencoder, latents[part], *given)
            pieces.append(pixels_to_frames(pixels if detail is None else pixels + detail.to(pixels)))
    return np.concatenate(pieces)


def decode_pixels(
    autoencoder: ModelMixin,
    latents: torch.Tensor,
    reference: torch.Tensor | None = None,
    soft_border: bool = True,
    bent: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pixels [T, 3, S, S], within about [-1, 1], of scaled latents [T, C, h, w]; on the autoencoder's device.

    reference: pixels [T or 1, 3, S, S] for an autoencoder that takes detail from them; others ignore it, and
    soft_border with it. bent: its lower face as it is in each frame, [T, 3, w, w], None where that is the same.
    """
    code = latents.to(autoencoder.device, autoencoder.dtype) / scaling_factor(autoencoder)
    if reference is not None and sees_reference(autoencoder):
        return autoencoder.decode(code, reference.to(code), soft_border, None if bent is None else bent.to(code)).sample
    return autoencoder.decode(code).sample


@torch.no_grad()
def through(autoencoder: ModelMixin, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [T, 3, S, S] as their latents alone say them, without a reference."""
    return decode_pixels(autoencoder, encode_pixels(autoencoder, pixels))


def scaling_factor(autoencoder: ModelMixin) -> float:
    """What diffusers multiplies this autoencoder's latents by, 1 where its configuration names nothing."""
    return float(getattr(autoencoder.config, "scaling_factor", None) or 1.0)


def frames_to_pixels(frames: np.ndarray) -> torch.Tensor:
    """uint8 [T, H, W, 3] to float32 [T, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def pixels_to_frames(pixels: torch.Tensor) -> np.ndarray:
    """float [T, 3, H, W] in [-1, 1] to uint8 [T, H, W, 3], clipped and rounded."""
    frames = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).byte()
    return frames.permute(0, 2, 3, 1).cpu().numpy()


def encoder_fingerprint(autoencoder: ModelMixin) -> str:
    """SHA-256 (first 16 hex digits) of everything latents depend on: encoder weights and scaling factor."""
    digest = hashlib.sha256(f"{autoencoder.__class__.__name__}:{scaling_factor(autoencoder)}".encode())
    state = autoencoder.state_dict()
    for name in sorted(state):
        if not name.startswith(("decoder", "post_quant_conv")):
            digest.update(name.encode())
            digest.update(state[name].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
