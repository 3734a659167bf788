"""Generation: one face and a sound in, a talking face out, as a diffusers pipeline.

pipe = TalkingHeadPipeline.from_pretrained("models/grid")
frames = pipe(face, audio).frames            # uint8 [T, S, S, 3] at 25 fps
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils import logging as diffusers_logging

from fedtalk_ray.data.speech import speech_windows
from fedtalk_ray.data.video import FPS, SAMPLE_RATE
from fedtalk_ray.errors import RunError
from fedtalk_ray.model.autoencoder import (
    decode_latents,
    encode_frames,
    encoder_fingerprint,
    load_autoencoder,
    scaling_factor,
)
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser, bare_denoiser
from fedtalk_ray.model.identity import FaceCritic, IdentityEncoder
from fedtalk_ray.model.schedule import make_scheduler

DEFAULT_STEPS = 2
"""DDIM steps. On four unseen GRID speakers (24 minutes of pretraining) 1 / 2 / 3 / 8 steps gave a lip correlation of
0.63 / 0.63 / 0.62 / 0.59 and a jitter of 0.82 / 1.17 / 1.28 / 1.51 times the truth's: more steps only add noise."""
DEFAULT_GUIDANCE = 1.0
"""How far the sound's effect is exaggerated; 1 is not at all. On five unseen GRID speakers 2 opened the lips 1.6
times too far and cost 1.2 dB in the mouth for 0.02 of lip correlation."""


@dataclass
class TalkingHeadOutput(BaseOutput):
    """frames: uint8 [T, S, S, 3]. latents: float32 [T, C, h, w], scaled."""

    frames: np.ndarray
    latents: torch.Tensor


class TalkingHeadPipeline(DiffusionPipeline):
    """Autoencoder, denoiser and scheduler, saved and loaded as diffusers does; the identity encoder rides along.

    The denoiser may also be a PEFT model around it, so that adapters act. A pipeline that nobody pretrained has no
    identity encoder.
    """

    _optional_components: ClassVar[list[str]] = ["identity_encoder"]

    autoencoder: ModelMixin
    denoiser: Any
    scheduler: DDIMScheduler
    identity_encoder: IdentityEncoder | None

    def __init__(
        self,
        autoencoder: torch.nn.Module,
        denoiser: TalkingHeadDenoiser,
        scheduler: DDIMScheduler,
        identity_encoder: IdentityEncoder | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            autoencoder=autoencoder, denoiser=denoiser, scheduler=scheduler, identity_encoder=identity_encoder
        )

    def frame_size(self) -> int:
        """Side in pixels of the faces that this pipeline takes and makes."""
        config = bare_denoiser(self.denoiser).config
        blank = torch.zeros(1, config.latent_channels, config.latent_size, config.latent_size)
        return self.autoencoder.decode(blank.to(self.autoencoder.device)).sample.shape[-1]

    @torch.no_grad()
    def __call__(
        self,
        face: np.ndarray,
        audio: np.ndarray,
        num_inference_steps: int = DEFAULT_STEPS,
        guidance_scale: float = DEFAULT_GUIDANCE,
        generator: torch.Generator | None = None,
    ) -> TalkingHeadOutput:
        """face: aligned crop uint8 [S, S, 3]. audio: float32 [N] at 16 kHz. Makes a frame for every 40 ms begun."""
        frames = max(2, -(-len(audio) * FPS // SAMPLE_RATE))
        reference = torch.from_numpy(encode_frames(self.autoencoder, face[None]))
        speech = torch.from_numpy(speech_windows(audio, frames))
        latents = sample_clip(
            self.denoiser, self.scheduler, reference[0], speech, num_inference_steps, guidance_scale, generator
        )
        return TalkingHeadOutput(frames=decode_latents(self.autoencoder, latents), latents=latents)


@torch.no_grad()
def sample_clip(
    denoiser: torch.nn.Module,
    scheduler: DDIMScheduler,
    reference: torch.Tensor,
    speech: torch.Tensor,
    steps: int = DEFAULT_STEPS,
    guidance: float = DEFAULT_GUIDANCE,
    generator: torch.Generator | None = None,
    batch: int = 8,
) -> torch.Tensor:
    """Latents float32 [T, C, h, w] of a clip of any length from its reference [C, h, w] and speech [T, hops, mel].

    Each denoising step predicts windows that overlap by half and blends them (triangular weights), so that no seam
    between windows can form. Noise is drawn on the CPU: a seeded `generator` means the same clip on every device.
    """
    base = bare_denoiser(denoiser)
    device, window = base.device, base.config.window
    total = len(speech)
    if total < window:
        speech = torch.cat([speech, speech[-1:].expand(window - total, -1, -1)])
    length = len(speech)
    noisy = torch.randn((length, *reference.shape), generator=generator).to(device)
    speech, reference = speech.to(device), reference.to(device)
    begins = [*range(0, length - window, max(1, window // 2)), length - window]
    ramp = torch.arange(1, window + 1, device=device, dtype=torch.float32)
    blend = torch.minimum(ramp, ramp.flip(0))[:, None, None, None]
    scheduler.set_timesteps(steps, device=device)
    for timestep in scheduler.timesteps:
        total_prediction = torch.zeros_like(noisy)
        total_weight = torch.zeros(length, 1, 1, 1, device=device)
        for group in (begins[at : at + batch] for at in range(0, len(begins), batch)):
            windows = torch.stack([noisy[begin : begin + window] for begin in group])
            sounds = torch.stack([speech[begin : begin + window] for begin in group])
            faces = reference.expand(len(group), *reference.shape)
            times = timestep.expand(len(group))
            predicted = denoiser(windows, times, sounds, faces)
            if guidance != 1:
                silent = torch.zeros(len(group), dtype=torch.bool, device=device)
                without = denoiser(windows, times, sounds, faces, silent)
                predicted = without + guidance * (predicted - without)
            for begin, prediction in zip(group, predicted, strict=True):
                total_prediction[begin : begin + window] += blend * prediction
                total_weight[begin : begin + window] += blend
        noisy = scheduler.step(total_prediction / total_weight, timestep, noisy).prev_sample
    return base.from_residual(noisy[None, :total], reference[None])[0].float().cpu()


def load_pipeline(folder: str) -> TalkingHeadPipeline:
    """The pipeline that `fedtalk pretrain` or a run wrote. Raises `errors.RunError` where there is none."""
    if not (Path(folder) / "model_index.json").is_file():
        raise RunError(
            f"{folder} holds no pipeline (no model_index.json); `fedtalk pretrain --out {folder}` writes one"
        )
    # A small local folder loads in a moment: a progress bar for each slot would only be noise.
    diffusers_logging.disable_progress_bar()
    try:
        return TalkingHeadPipeline.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise RunError(f"pipeline {folder} is damaged: {' '.join(str(error).split())}") from error


def new_pipeline(autoencoder: str, latent_channels: int, latent_size: int) -> TalkingHeadPipeline:
    """An untrained pipeline around an autoencoder; weights from torch's global generator."""
    denoiser = TalkingHeadDenoiser(latent_channels=latent_channels, latent_size=latent_size)
    scheduler = make_scheduler(denoiser.config.prediction_type)
    return TalkingHeadPipeline(load_autoencoder(autoencoder), denoiser, scheduler)


def make_critic(pipeline: TalkingHeadPipeline) -> FaceCritic | None:
    """What compares faces, from the pipeline's own parts; None where no identity encoder was trained."""
    if pipeline.identity_encoder is None:
        return None
    return FaceCritic(pipeline.autoencoder, pipeline.identity_encoder, scaling_factor(pipeline.autoencoder))


def fingerprint(pipeline: TalkingHeadPipeline) -> str:
    """Names the encoder that shards for this pipeline must come from."""
    return encoder_fingerprint(pipeline.autoencoder)
