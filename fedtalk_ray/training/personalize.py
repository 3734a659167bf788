"""Personalisation: a client trains its own identity adapter on its own clips, after or between federated rounds.

Runs on the client's side and writes nowhere else: the adapter stays in RUN/clients/<id>/identity.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedtalk_ray.config import TrainConfig, load_config
from fedtalk_ray.data.shards import Piece, load_manifest, read_pieces
from fedtalk_ray.data.windows import WindowBatch, cut_windows, held_out_windows
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.checkpoint import load_checkpoint
from fedtalk_ray.federation.seeding import derive_seed
from fedtalk_ray.model.pipeline import load_pipeline
from fedtalk_ray.training.backbone import check_fits
from fedtalk_ray.training.client_state import CURRENT, client_folder, load_identity, save_identity
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
    pieces = {
        split: list(read_pieces(shards, manifest, client, split, ("latents", "speech"))) for split in ("train", "val")
    }
    held_out = held_out_windows(pieces["val"], trainer.window, 8)
    before = trainer.held_out_loss(held_out, seed=0)
    trainer.personalize(_random_batches(pieces["train"], trainer.window, config, seed), steps, seed, tick)
    save_identity(trainer.model, run, client, checkpoint.round)
    return Personalized(client_folder(run, client) / CURRENT, before, trainer.held_out_loss(held_out, seed=0))


def _random_batches(pieces: list[Piece], window: int, config: TrainConfig, seed: int) -> Iterator[WindowBatch]:
    """Endless batches of random windows of one client's pieces."""
    rng = np.random.default_rng(seed)
    while True:
        chosen = rng.integers(len(pieces), size=config.local.batch_size)
        parts = [
            cut_windows(pieces[index].latents, pieces[index].speech, window, 1, rng, pieces[index].identity)
            for index in chosen
        ]
        joined = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])).float() for name in parts[0]}
        yield WindowBatch(**joined)
