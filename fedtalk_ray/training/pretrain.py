"""Central pretraining on clips that may be public: decoder, identity encoder, sync network, and the shared backbone.

Everything that federated training then builds on comes from here (with `shared: backbone` the denoiser may instead
start untrained). The training clips of all identities are held in memory.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import torch

from fedtalk_ray.errors import ShardError
from fedtalk_ray.model.autoencoder import PatchAutoencoder
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.model.pipeline import load_pipeline
from fedtalk_ray.model.presets import PresetError, preset, sizes
from fedtalk_ray.model.sync import SyncNetwork
from fedtalk_ray.outputs import new_folder
from fedtalk_ray.progress import ticker
from fedtalk_ray.settings import LossConfig
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.reader import read_pieces
from fedtalk_ray.tracking.tensorboard import TensorBoardLog
from fedtalk_ray.training.backbone import check_fits, untrained_pipeline
from fedtalk_ray.training.calibration import calibrate
from fedtalk_ray.training.model_card import Recipe, model_card
from fedtalk_ray.training.optimise import budget
from fedtalk_ray.training.train_decoder import autoencoder_psnr, train_decoder
from fedtalk_ray.training.train_denoiser import set_units, train_denoiser
from fedtalk_ray.training.train_identity import train_identity
from fedtalk_ray.training.train_speech_motion import lip_shapes, train_speech_motion
from fedtalk_ray.training.train_sync import sync_accuracy, train_sync, vary_clips

PARTS = {"decoder": (0.07, 75.0), "identity": (0.07, 75.0), "sync": (0.1, 150.0), "speech": (0.13, 200.0)}
"""What comes before the denoiser: share of its time, and the seconds after which more taught nothing (one core)."""
LOG_EVERY = 25
HELD_OUT = 12
"""Where shards hold no val clip, one training clip in so many is kept from training, to judge and calibrate by."""
MOST_CALIBRATED = 60
"""Clips that are calibrated by; more say nothing new."""
MIN_PSNR = 28.0
"""dB that the autoencoder must reach on held-out frames before anything trains on its latents."""


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
    size: str | None = None,
    start: str | None = None,
    tensorboard: str | Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Pretrained:
    """All parts in turn, from the train split of `shards`; writes a pipeline in diffusers' layout to `out`.

    What is shown of its predictions is calibrated on val clips, or on training clips kept aside (`HELD_OUT`).

    The denoiser trains for `minutes` (or exactly `steps`), the parts before it for a share of that each. size: a
    name of `model.presets`, None for tiny. start: a pipeline to go on from (`model.pipeline.load_pipeline`), in place
    of random weights of that size. tensorboard: where the denoiser's losses are logged. device: of all parts but
    the calibration; "auto" is a GPU where there is one. Raises `ShardError` for shards without training clips, that do
    not fit `start`, or of an autoencoder that is too poor to build on, and `PresetError` for an unknown size, or for
    one beside `start`.
    """
    device = pick_device(device)
    if size and start:
        raise PresetError(f"preset {size!r} cannot be chosen beside a start: {start} has a size already")
    began, settings_of_size = monotonic(), sizes(preset(size or "tiny"))
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
    if not held_out and len(pieces) >= HELD_OUT:
        held_out = pieces[::HELD_OUT]
        del pieces[::HELD_OUT]
    with new_folder(out, overwrite) as place:
        if start is None:
            pipeline = untrained_pipeline(manifest, **settings_of_size)
        else:
            pipeline = load_pipeline(start)
            check_fits(manifest, pipeline, start)
        encoder = pipeline.identity_encoder or IdentityEncoder()
        channels, cells, _ = manifest.shapes["latents"]
        check = np.concatenate([piece.frames[::10] for piece in held_out or pieces])[:200]
        before = autoencoder_psnr(pipeline.autoencoder, check)
        share = None if steps is None else max(1, steps // 2)
        seconds = {part: min(60 * minutes * of, most) for part, (of, most) in PARTS.items()}
        if isinstance(pipeline.autoencoder, PatchAutoencoder):
            parts = shown(share, seconds["decoder"], "decoder")
            train_decoder(pipeline.autoencoder, pieces, parts, rng, device)
        after = autoencoder_psnr(pipeline.autoencoder, check)
        if after < MIN_PSNR:
            raise ShardError(
                f"autoencoder {manifest.autoencoder!r} reaches {after:.1f} dB on held-out frames of {shards}; at least "
                f"{MIN_PSNR:g} dB are needed to build on: prepare the shards with a better one"
            )
        people = len({piece.client for piece in pieces})
        if people > 1:
            train_identity(encoder, pieces, shown(share, seconds["identity"], "identity"), rng, device)
            pipeline.register_modules(identity_encoder=encoder)
        sync = pipeline.sync_network or SyncNetwork(channels, cells, *manifest.shapes["speech"], speech=manifest.speech)
        copies = [vary_clips(pieces, pipeline.autoencoder, rng) for _ in range(min(8, 400 // len(pieces)))]
        train_sync(sync, [*pieces, *itertools.chain(*copies)], shown(share, seconds["sync"], "sync"), rng, device)
        pipeline.register_modules(sync_network=sync)
        set_units(pipeline.denoiser, pieces, rng)
        settings = loss_config or LossConfig()
        lips = lip_shapes(pieces, pipeline.denoiser.config.lip_numbers)
        speech = shown(share, seconds["speech"], "speech")
        train_speech_motion(pipeline.denoiser, pieces, lips, speech, settings.mouth_weight, rng, device)
        parts = shown(steps, minutes * 60, "denoiser")
        losses = logged(train_denoiser(pipeline, pieces, lips, parts, settings, seed, device=device), tensorboard)
        loss = float(np.mean(losses[-max(1, len(losses) // 10) :]))
        if held_out:
            calibrate(pipeline, held_out[:: -(-len(held_out) // MOST_CALIBRATED)], seed)
        pipeline.save_pretrained(str(place))
        recipe = Recipe(str(shards), size or "tiny", start, minutes, steps, seed, threads, settings)
        checked = "held-out" if held_out else "training"
        figures = {f"autoencoder, dB on {checked} frames": after, "diffusion loss at the end": loss}
        if held_out:
            accuracy = sync_accuracy(sync, held_out)
            figures["sync network, held-out clips in time within 2 frames (chance 0.45)"] = accuracy.within_2
        card = model_card(manifest, recipe, len(pieces), people, len(losses), monotonic() - began, figures)
        (place / "README.md").write_text(card)
    return Pretrained(before, after, len(losses), loss)


def logged(steps: Iterator[dict[str, float]], folder: str | Path | None) -> list[float]:
    """The diffusion loss of every step. Means of all terms over `LOG_EVERY` steps go to TensorBoard in `folder`."""
    log = TensorBoardLog(Path(folder)) if folder is not None else None
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
