"""Personalisation: a client trains its own identity adapter on its own clips, after or between federated rounds.

Runs on the client's side and writes nowhere else: the adapter stays in RUN/clients/<id>/identity.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedtalk_ray.config import load_config
from fedtalk_ray.data.shard_reader import read_pieces
from fedtalk_ray.data.shards import Piece, load_manifest
from fedtalk_ray.data.windows import WindowBatch, held_out_windows
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.checkpoint import load_checkpoint
from fedtalk_ray.federation.seeding import derive_seed
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline
from fedtalk_ray.training.backbone import check_fits
from fedtalk_ray.training.client_state import CURRENT, client_folder, load_identity, save_identity
from fedtalk_ray.training.denoiser import random_batch
from fedtalk_ray.training.local import LocalTrainer


@dataclass(frozen=True)
class Personalized:
    """Where the adapter lies, and the diffusion loss on the client's held-out windows before and after."""

    folder: Path
    loss_before: float
    loss_after: float


def personalize(
    run: str | Path,
    client: str,
    steps: int,
    tick: Callable[[dict[str, float]], None] = lambda _: None,
    shards: str | None = None,
) -> Personalized:
    """Goes on training the client's identity adapter (a fresh one if it has none), with everything shared frozen.

    shards: where the client's clips lie, None for the run's own. Calls `tick` with the loss terms after every step.
    Raises `RunError` without a trained run, `ShardError` for a client that the shards cannot serve.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise RunError(f"{run} is no run folder (no config.yaml); `fedtalk train` makes one")
    config = load_config(run / "config.yaml")
    checkpoint = load_checkpoint(run / "checkpoints")
    if checkpoint is None or not (run / "pipeline").is_dir():
        raise RunError(f"run {run} has no trained model yet; finish a round first")
    shards = shards or config.shards
    manifest = load_manifest(shards)
    manifest.check_clients([client])
    pipeline = load_pipeline(str(run / "pipeline"))
    check_fits(manifest, pipeline, str(run / "pipeline"))
    trainer = LocalTrainer(pipeline, config)
    after = checkpoint.round + 1
    seed = derive_seed(config.seed, "personalize", client)
    trainer.load(checkpoint.parameters, load_identity(trainer.model, run, client, after), seed)
    train = list(read_pieces(shards, manifest, client, "train", ("frames", "latents", "speech")))
    val = read_pieces(shards, manifest, client, "val", ("latents", "speech"))
    held_out = held_out_windows(val, trainer.window, 8)
    before = trainer.held_out_loss(held_out, seed=0)
    trainer.personalize(_varied_batches(pipeline, train, config.local.batch_size, seed), steps, seed, tick)
    save_identity(trainer.model, run, client, checkpoint.round)
    return Personalized(client_folder(run, client) / CURRENT, before, trainer.held_out_loss(held_out, seed=0))


def _varied_batches(pipeline: TalkingHeadPipeline, pieces: list[Piece], size: int, seed: int) -> Iterator[WindowBatch]:
    """Endless batches of random windows of one client's pieces, seen and heard a little differently each time: one
    clip of three seconds would else teach its light and where its head was."""
    rng = np.random.default_rng(seed)
    heard = [np.zeros((len(piece.frames), 0), np.float32) for piece in pieces]
    while True:
        yield random_batch(pipeline, pieces, heard, size, rng)
