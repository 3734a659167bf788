"""Central pretraining on clips that may be public: the decoder, the identity encoder, and the shared backbone.

Everything that federated training then builds on comes from here (with `shared: backbone` the denoiser may instead
start untrained). Works on face crops, not on stored latents, so that pictures can be mirrored. The training clips of
all identities are held in memory.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ModelMixin

from fedtalk_ray.config import LossConfig
from fedtalk_ray.data.shards import Piece, load_manifest, read_pieces
from fedtalk_ray.data.windows import WindowBatch, cut_windows
from fedtalk_ray.errors import ShardError
from fedtalk_ray.model.autoencoder import PatchAutoencoder, encode_frames
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, fingerprint, make_critic, new_pipeline
from fedtalk_ray.observability import ticker
from fedtalk_ray.outputs import new_folder
from fedtalk_ray.training.decoder import autoencoder_psnr, train_decoder
from fedtalk_ray.training.identity import train_identity
from fedtalk_ray.training.losses import cell_weights, window_loss
from fedtalk_ray.training.schedule import budget, cosine, optimise

EMA_DECAY = 0.998
MIN_PSNR = 28.0
"""dB that the autoencoder must reach on held-out frames before anything trains on its latents."""


@dataclass
class PretrainData:
    """Training pieces in memory with their latents, plain and mirrored, float16 [T, C, h, w]."""

    pieces: list[Piece]
    latents: list[np.ndarray]
    mirrored: list[np.ndarray]

    @classmethod
    def encode(cls, pieces: list[Piece], autoencoder: ModelMixin) -> "PretrainData":
        plain = [encode_frames(autoencoder, piece.frames).astype(np.float16) for piece in pieces]
        flipped = [encode_frames(autoencoder, piece.frames[:, :, ::-1]).astype(np.float16) for piece in pieces]
        return cls(pieces, plain, flipped)


def train_denoiser(
    pipeline: TalkingHeadPipeline,
    data: PretrainData,
    progress: Iterator[float],
    loss_config: LossConfig,
    seed: int,
    *,
    learning_rate: float = 1e-3,
    batch_size: int = 4,
) -> Iterator[dict[str, float]]:
    """AdamW with warm-up and a cosine tail; an exponential average of the weights is what remains at the end.

    Yields the loss terms of every step and the share of the work done ("done").
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    denoiser = pipeline.denoiser
    critic = make_critic(pipeline)
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=learning_rate, weight_decay=0.01)
    average = copy.deepcopy(denoiser).requires_grad_(False)
    denoiser.train()
    for step, done in enumerate(progress):
        batch = random_batch(data, denoiser.config.window, batch_size, rng)
        terms = window_loss(denoiser, pipeline.scheduler, batch, loss_config, generator, critic)
        optimise(optimiser, denoiser, terms.total, learning_rate * min(1.0, (step + 1) / 100) * cosine(done))
        # The average forgets its beginning faster than its end: early weights are worth little.
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, current in zip(average.parameters(), denoiser.parameters(), strict=True):
                kept.lerp_(current, 1 - decay)
        yield terms.floats() | {"done": done}
    denoiser.load_state_dict(average.state_dict())
    denoiser.eval()


def random_batch(data: PretrainData, window: int, count: int, rng: np.random.Generator) -> WindowBatch:
    """Windows of random clips, half of them mirrored, their sound varied as another voice and room would."""
    parts = []
    for _ in range(count):
        index = int(rng.integers(len(data.pieces)))
        latents = (data.mirrored if rng.random() < 0.5 else data.latents)[index]
        part = cut_windows(latents, data.pieces[index].speech, window, 1, rng)
        parts.append(part | {"speech": vary_speech(part["speech"].astype(np.float32), rng)})
    joined = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])).float() for name in parts[0]}
    return WindowBatch(**joined)


def vary_speech(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Log-mel windows float32 [B, T, hops, mel] with another vocal tract (bins shifted), tilt, level and noise.

    A few dozen clips hold a few voices: without this the network learns whose voice it is, not what is said.
    """
    varied = np.roll(speech, rng.integers(-2, 3), axis=-1)
    tilt = np.linspace(-1, 1, speech.shape[-1]) * rng.normal(0, 0.15)
    varied = varied + tilt + rng.normal(0, 0.15) + rng.normal(0, 0.1, speech.shape)
    return np.maximum(varied, -3).astype(np.float32)


def train_speech_map(
    pipeline: TalkingHeadPipeline, data: PretrainData, progress: Iterator[float], mouth_weight: float, seed: int
) -> None:
    """Regresses the residual on a random frame from the sound alone: the mouth that each sound means, in seconds.

    Many more frames go through here than through the U-Net in the same time, and the U-Net then starts with an
    embedding that already tells mouths apart; without this nothing followed the sound after five minutes (GRID).
    """
    rng = np.random.default_rng(seed)
    denoiser = pipeline.denoiser
    heard = torch.nn.ModuleList([denoiser.speech_encoder, denoiser.speech_map])
    optimiser = torch.optim.AdamW(heard.parameters(), lr=1e-3, weight_decay=0.05)
    mask = cell_weights(denoiser.config.latent_size, mouth_weight)
    for done in progress:
        batch = random_batch(data, 16, 16, rng)
        target = denoiser.to_residual(batch.latents, batch.reference)
        loss = (mask * (denoiser.speech_motion(batch.speech) - target).square()).mean()
        optimise(optimiser, heard, loss, 1e-3 * cosine(done))


def set_units(denoiser: TalkingHeadDenoiser, data: PretrainData, rng: np.random.Generator) -> None:
    """Fixes the units of latents and of residuals on random frames from the training clips."""
    latents = [clip[::5] for clip in data.latents]
    residuals = [
        frames - clip[rng.integers(len(clip), size=len(frames))]
        for frames, clip in zip(latents, data.latents, strict=True)
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
    overwrite: bool = False,
) -> Pretrained:
    """All parts in turn, from the train split of `shards`; writes a pipeline in diffusers' layout to `out`.

    The denoiser trains for `minutes` (or exactly `steps`), the parts before it for a share of that each. Raises
    `ShardError` for shards without training clips or of an autoencoder that is too poor to build on.
    """
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
        channels, size, _ = manifest.shapes["latents"]
        pipeline = new_pipeline(manifest.autoencoder, channels, size)
        manifest.check_autoencoder(fingerprint(pipeline), manifest.autoencoder)
        encoder = IdentityEncoder()
        check = np.concatenate([piece.frames[::10] for piece in held_out or pieces])[:200]
        before = autoencoder_psnr(pipeline.autoencoder, check)
        share = None if steps is None else max(1, steps // 2)
        if isinstance(pipeline.autoencoder, PatchAutoencoder):
            parts = shown(share, minutes * 4, "decoder")
            train_decoder(pipeline.autoencoder, pieces, parts, rng)
        after = autoencoder_psnr(pipeline.autoencoder, check)
        if after < MIN_PSNR:
            raise ShardError(
                f"autoencoder {manifest.autoencoder!r} reaches {after:.1f} dB on held-out frames of {shards}; at least "
                f"{MIN_PSNR:g} dB are needed to build on: prepare the shards with a better one"
            )
        if len(manifest.clients()) > 1:
            train_identity(encoder, pieces, shown(share, minutes * 4, "identity"), rng)
            pipeline.register_modules(identity_encoder=encoder)
        data = PretrainData.encode(pieces, pipeline.autoencoder)
        set_units(pipeline.denoiser, data, rng)
        settings = loss_config or LossConfig()
        train_speech_map(pipeline, data, shown(share, minutes * 4, "speech"), settings.mouth_weight, seed)
        losses = [
            terms["diffusion"]
            for terms in train_denoiser(pipeline, data, shown(steps, minutes * 60, "denoiser"), settings, seed)
        ]
        pipeline.save_pretrained(str(place))
    return Pretrained(before, after, len(losses), float(np.mean(losses[-max(1, len(losses) // 10) :])))


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
