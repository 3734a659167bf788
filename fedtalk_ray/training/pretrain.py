"""Central pretraining on clips that may be public: the decoder, the identity encoder, and the shared backbone.

Everything that federated training then builds on comes from here (with `shared: backbone` the denoiser may instead
start untrained). Works on face crops, not on stored latents, so that pictures can be varied. The training clips of all
identities are held in memory.
"""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import torch

from fedtalk_ray.config import LossConfig
from fedtalk_ray.data.shards import Piece, load_manifest, read_pieces
from fedtalk_ray.data.speech import LOG_MEL
from fedtalk_ray.data.windows import WindowBatch
from fedtalk_ray.errors import ShardError
from fedtalk_ray.model.autoencoder import PatchAutoencoder, encode_pixels
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, make_critic, make_sync_loss
from fedtalk_ray.model.presets import preset, sizes
from fedtalk_ray.model.sync import SyncNetwork
from fedtalk_ray.observability import RunLog, ticker
from fedtalk_ray.outputs import new_folder
from fedtalk_ray.training.augment import vary_pictures, vary_speech
from fedtalk_ray.training.backbone import untrained_pipeline
from fedtalk_ray.training.decoder import autoencoder_psnr, train_decoder
from fedtalk_ray.training.identity import train_identity
from fedtalk_ray.training.lip_shape import lip_shapes
from fedtalk_ray.training.losses import window_loss
from fedtalk_ray.training.model_card import Recipe, model_card
from fedtalk_ray.training.schedule import budget, cosine, optimise
from fedtalk_ray.training.speech_motion import train_speech_motion
from fedtalk_ray.training.sync import sync_accuracy, train_sync, vary_clips

EMA_DECAY = 0.998
TOLD_LIPS = 0.9
"""Share of windows that train with their true lip shapes."""
PARTS = {"decoder": (0.07, 75.0), "identity": (0.07, 75.0), "sync": (0.1, 150.0), "speech": (0.13, 200.0)}
"""What comes before the denoiser: share of its time, and the seconds after which more taught nothing (one core)."""
LOG_EVERY = 25
MIN_PSNR = 28.0
"""dB that the autoencoder must reach on held-out frames before anything trains on its latents."""


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
) -> Iterator[dict[str, float]]:
    """AdamW with warm-up and a cosine tail; an exponential average of the weights is what remains at the end.

    What `train_speech_motion` taught stays as it is. Yields the loss terms of every step and the share done ("done").
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    denoiser = pipeline.denoiser
    critic, sync_loss = make_critic(pipeline), make_sync_loss(pipeline)
    loss_config = loss_config.model_copy(update={"motion": 0.0})
    for part in (denoiser.speech_encoder, denoiser.speech_map):
        part.requires_grad_(False)
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.02)
    average = copy.deepcopy(denoiser).requires_grad_(False)
    denoiser.train()
    for step, done in enumerate(progress):
        batch = random_batch(pipeline, pieces, lips, batch_size, rng)
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
        told = lips[index][begin : begin + config.window]
        shapes.append(told if rng.random() < TOLD_LIPS else np.full_like(told, np.nan))
    latents = encode_pixels(pipeline.autoencoder, torch.cat(pixels)).unflatten(0, (count, -1))
    heard, who, told = (torch.from_numpy(np.stack(column)) for column in (sounds, people, shapes))
    return WindowBatch(latents[:, 1:], heard, latents[:, 0], who, told)


def set_units(denoiser: TalkingHeadDenoiser, pieces: list[Piece], rng: np.random.Generator) -> None:
    """Fixes the units of latents and of residuals on random frames from the training clips."""
    clips = [piece.latents.astype(np.float32) for piece in pieces]
    latents = [clip[::5] for clip in clips]
    residuals = [
        frames - clip[rng.integers(len(clip), size=len(frames))] for frames, clip in zip(latents, clips, strict=True)
    ]
    denoiser.set_statistics(*(torch.from_numpy(np.concatenate(part)).float() for part in (latents, residuals)))


@dataclass(frozen=True)
class Pretrained:
    """What was reached. PSNRs in dB on held-out frames; loss: mean diffusion loss of the last tenth of the steps."""

    psnr_before: float
    psnr_after: float
    steps: int
    loss: float


def pretrain(
    shards: str | Path,
    out: str | Path,
    *,
    minutes: float,
    steps: int | None = None,
    seed: int = 0,
    threads: int = 1,
    loss_config: LossConfig | None = None,
    size: str = "tiny",
    tensorboard: str | Path | None = None,
    overwrite: bool = False,
) -> Pretrained:
    """All parts in turn, from the train split of `shards`; writes a pipeline in diffusers' layout to `out`.

    The denoiser trains for `minutes` (or exactly `steps`), the parts before it for a share of that each. size: a name
    of `model.presets`. tensorboard: where the denoiser's losses are logged. Raises `ShardError` for shards without
    training clips or of an autoencoder that is too poor to build on.
    """
    began, settings_of_size = monotonic(), sizes(preset(size))
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    manifest = load_manifest(shards)
    pieces, held_out = (
        [piece for name in sorted(manifest.identities) for piece in read_pieces(shards, manifest, name, split)]
        for split in ("train", "val")
    )
    if not pieces:
        raise ShardError(f"shards {shards} hold no training clip; an identity needs two clips for one to be trained on")
    with new_folder(out, overwrite) as place:
        pipeline = untrained_pipeline(manifest, **settings_of_size)
        encoder = IdentityEncoder()
        channels, cells, _ = manifest.shapes["latents"]
        check = np.concatenate([piece.frames[::10] for piece in held_out or pieces])[:200]
        before = autoencoder_psnr(pipeline.autoencoder, check)
        share = None if steps is None else max(1, steps // 2)
        seconds = {part: min(60 * minutes * of, most) for part, (of, most) in PARTS.items()}
        if isinstance(pipeline.autoencoder, PatchAutoencoder):
            parts = shown(share, seconds["decoder"], "decoder")
            train_decoder(pipeline.autoencoder, pieces, parts, rng)
        after = autoencoder_psnr(pipeline.autoencoder, check)
        if after < MIN_PSNR:
            raise ShardError(
                f"autoencoder {manifest.autoencoder!r} reaches {after:.1f} dB on held-out frames of {shards}; at least "
                f"{MIN_PSNR:g} dB are needed to build on: prepare the shards with a better one"
            )
        if len({piece.client for piece in pieces}) > 1:
            train_identity(encoder, pieces, shown(share, seconds["identity"], "identity"), rng)
            pipeline.register_modules(identity_encoder=encoder)
        sync = SyncNetwork(channels, cells, *manifest.shapes["speech"], speech=manifest.speech)
        copies = [vary_clips(pieces, pipeline.autoencoder, rng) for _ in range(min(8, 400 // len(pieces)))]
        train_sync(sync, [*pieces, *itertools.chain(*copies)], shown(share, seconds["sync"], "sync"), rng)
        pipeline.register_modules(sync_network=sync)
        set_units(pipeline.denoiser, pieces, rng)
        settings = loss_config or LossConfig()
        lips = lip_shapes(pieces, pipeline.denoiser.config.lip_numbers)
        speech = shown(share, seconds["speech"], "speech")
        train_speech_motion(pipeline.denoiser, pieces, lips, speech, settings.mouth_weight, rng)
        parts = shown(steps, minutes * 60, "denoiser")
        losses = logged(train_denoiser(pipeline, pieces, lips, parts, settings, seed), tensorboard)
        loss = float(np.mean(losses[-max(1, len(losses) // 10) :]))
        pipeline.save_pretrained(str(place))
        recipe = Recipe(str(shards), size, minutes, steps, seed, threads, settings)
        figures = {"autoencoder, dB on held-out frames": after, "diffusion loss at the end": loss}
        if held_out:
            accuracy = sync_accuracy(sync, held_out)
            figures["sync network, held-out clips in time within 2 frames (chance 0.45)"] = accuracy.within_2
        card = model_card(manifest, recipe, len(pieces), len(losses), monotonic() - began, figures)
        (place / "README.md").write_text(card)
    return Pretrained(before, after, len(losses), loss)


def logged(steps: Iterator[dict[str, float]], folder: str | Path | None) -> list[float]:
    """The diffusion loss of every step. Means of all terms over `LOG_EVERY` steps go to TensorBoard in `folder`."""
    log = RunLog(Path(folder)) if folder is not None else None
    losses: list[float] = []
    recent: list[dict[str, float]] = []
    for step, terms in enumerate(steps, 1):
        losses.append(terms["diffusion"])
        recent.append(terms)
        if log is not None and step % LOG_EVERY == 0:
            log.scalars(step, {f"loss/{name}": float(np.mean([each[name] for each in recent])) for name in terms})
            log.flush()
            recent = []
    if log is not None:
        log.close()
    return losses


def shown(steps: int | None, seconds: float, what: str) -> Iterator[float]:
    """A training budget under a progress bar in hundredths of the work."""
    with ticker(100, what) as tick:
        shown_percent = 0
        for done in budget(steps, seconds):
            yield done
            while shown_percent < int(done * 100):
                tick()
                shown_percent += 1
        while shown_percent < 100:
            tick()
            shown_percent += 1
