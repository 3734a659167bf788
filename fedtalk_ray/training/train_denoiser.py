"""Pretraining, last part: the denoiser itself, on windows of clips that were seen and heard a little differently.

Works on face crops, not on stored latents, so that pictures can be varied.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch

from fedtalk_ray.media.speech import LOG_MEL
from fedtalk_ray.model.autoencoder import encode_pixels
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, make_critic, make_sync_loss
from fedtalk_ray.settings import LossConfig
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.augment import vary_pictures, vary_speech
from fedtalk_ray.training.losses import window_loss
from fedtalk_ray.training.optimise import cosine, optimise

EMA_DECAY = 0.998
TRUE_LIPS_SHARE = 0.9
"""Share of windows that train with their true lip shapes."""


def train_denoiser(
    pipeline: TalkingHeadPipeline,
    pieces: list[Piece],
    lips: list[np.ndarray],
    progress: Iterator[float],
    loss_config: LossConfig,
    seed: int,
    *,
    learning_rate: float = 1e-3,
    batch_size: int = 4,
    device: str = "cpu",
) -> Iterator[dict[str, float]]:
    """AdamW with warm-up and a cosine tail; an exponential average of the weights is what remains at the end.

    What `train_speech_motion` taught stays as it is. Yields the loss terms of every step and the share done ("done");
    after the last step everything is back on the CPU.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    denoiser = pipeline.to(device).denoiser
    critic, sync_loss = make_critic(pipeline), make_sync_loss(pipeline)
    for part in (denoiser.speech_encoder, denoiser.speech_map):
        part.requires_grad_(False)
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.02)
    average = copy.deepcopy(denoiser).requires_grad_(False)
    denoiser.train()
    for step, done in enumerate(progress):
        batch = random_batch(pipeline, pieces, lips, batch_size, rng).to(device)
        terms = window_loss(denoiser, pipeline.scheduler, batch, loss_config, generator, critic, sync_loss)
        optimise(optimiser, denoiser, terms.total, learning_rate * min(1.0, (step + 1) / 100) * cosine(done))
        # The average forgets its beginning faster than its end: early weights are worth little.
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, current in zip(average.parameters(), denoiser.parameters(), strict=True):
                kept.lerp_(current, 1 - decay)
        yield terms.floats() | {"done": done}
    denoiser.load_state_dict(average.state_dict())
    denoiser.requires_grad_(True).eval()
    pipeline.to("cpu")


def random_batch(
    pipeline: TalkingHeadPipeline, pieces: list[Piece], lips: list[np.ndarray], count: int, rng: np.random.Generator
) -> WindowBatch:
    """`count` windows of random clips with a random frame as reference, pictures and sound varied (`augment`).

    Some windows get their true lip shapes: from those the U-Net learns to do what a code says, which the shapes that it
    hears, being guesses, would not teach it.
    """
    config = pipeline.denoiser.config
    pixels, sounds, people, shapes = [], [], [], []
    for index in rng.integers(len(pieces), size=count):
        piece = pieces[index]
        begin = int(rng.integers(len(piece.frames) - config.window + 1))
        chosen = [int(rng.integers(len(piece.frames))), *range(begin, begin + config.window)]
        pixels.append(vary_pictures(piece.frames[chosen], rng))
        speech = piece.speech[begin : begin + config.window].astype(np.float32)
        sounds.append(vary_speech(speech, rng, config.speech == LOG_MEL))
        people.append(piece.identity)
        shape = lips[index][begin : begin + config.window]
        shapes.append(shape if rng.random() < TRUE_LIPS_SHARE else np.full_like(shape, np.nan))
    latents = (
        encode_pixels(pipeline.autoencoder, torch.cat(pixels).to(pipeline.autoencoder.device))
        .cpu()
        .unflatten(0, (count, -1))
    )
    speech, identity, lip_shapes = (torch.from_numpy(np.stack(column)) for column in (sounds, people, shapes))
    return WindowBatch(latents[:, 1:], speech, latents[:, 0], identity, lip_shapes)


def set_units(denoiser: TalkingHeadDenoiser, pieces: list[Piece], rng: np.random.Generator) -> None:
    """Fixes the units of latents and of residuals on random frames from the training clips."""
    clips = [piece.latents.astype(np.float32) for piece in pieces]
    latents = [clip[::5] for clip in clips]
    residuals = [
        frames - clip[rng.integers(len(clip), size=len(frames))] for frames, clip in zip(latents, clips, strict=True)
    ]
    denoiser.set_statistics(*(torch.from_numpy(np.concatenate(part)).float() for part in (latents, residuals)))
