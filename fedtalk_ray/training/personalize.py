"""Personalisation: a client trains its own identity adapter on its own clips, after or between federated rounds, and
keeps what sounds mean for its lips and the mouths of its frames beside it.

Runs on the client's side and writes nowhere else: all of it stays in the client's folder of the run.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from peft import PeftModel

from fedtalk_ray.errors import RunError
from fedtalk_ray.model import adapters
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.model.own_hearing import OwnHearing
from fedtalk_ray.model.own_mouth import OwnMouth
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.seeding import derive_seed
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import LANDMARKS
from fedtalk_ray.shards.people import People, people_of
from fedtalk_ray.shards.windows import Wanted, WindowBatch
from fedtalk_ray.training.augment import vary_windows
from fedtalk_ray.training.backbone import check_fits
from fedtalk_ray.training.local import LocalTrainer, released_trainer
from fedtalk_ray.training.own_hearing import own_hearing
from fedtalk_ray.training.own_mouth import own_mouth
from fedtalk_ray.training.phases.hearing import encoder_of
from fedtalk_ray.training.told_lips import lips_wanted, tell

HELD_OUT_WINDOWS = 8


@dataclass(frozen=True)
class Personalized:
    """Where the adapter lies, and the diffusion loss on the client's held-out windows before and after, both with
    everybody's open mouth, after with what the client's own lips do."""

    folder: Path
    loss_before: float
    loss_after: float


def personalize(
    run: str | Path,
    client: str,
    steps: int,
    tick: Callable[[dict[str, float]], None] = lambda _: None,
    shards: str | None = None,
    device: str = "auto",
    people: People | None = None,
) -> Personalized:
    """Goes on training the client's identity adapter (a fresh one if it has none) beside the run's released model,
    which stays as it is.

    shards: where the client's clips lie, None for the run's own. people: who is there, where that is not what the run's
    settings say: at a site. Calls `tick` with the loss terms after every step.
    Raises `RunError` without a trained run, `ShardError` for a client that the shards cannot serve.
    """
    folder = RunFolder(Path(run))
    config = folder.config()
    if not folder.has_model():
        raise RunError(f"run {run} has no trained model yet; finish a round first")
    people = people_of(config, shards) if people is None else people
    if people.clients is None or client not in people.clients:
        # Whoever could be a client of these shards, though the run made others.
        people.manifest.check_clients([client])
    trainer = released_trainer(folder, config, pick_device(device))
    check_fits(people.manifest, trainer.pipeline, str(folder.pipeline))
    seed = derive_seed(config.seed, "personalize", client)
    identity = adapters.load_identity(trainer.model, folder.identity_adapter(client))
    trainer.load(adapters.to_vector(trainer.shared()), identity, seed)
    lips = lips_wanted(bare_denoiser(trainer.model), 0.0)
    held_out = people.windows(client, trainer.window, HELD_OUT_WINDOWS, lips)
    before = trainer.held_out_loss(held_out, seed=0)
    # It is not shown while the adapter trains: each frame's own inside is among its frames, and a new sound has none.
    base = bare_denoiser(trainer.model)
    mouth = own_mouth(people.pieces(client, "train", ("frames", LANDMARKS)), base)
    hearing = own_hearing(people.pieces(client, "train", ("speech", LANDMARKS)), base)
    if hearing is not None:
        hearing.join(encoder_of(base))
    trainer.personalize(varied_windows(trainer, people, config, client, steps, seed), steps, seed, tick)
    written = keep_own(folder, client, trainer.model, hearing, mouth)
    return Personalized(written, before, trainer.held_out_loss(held_out, seed=0))


def keep_own(
    run: RunFolder, client: str, model: PeftModel, hearing: OwnHearing | None = None, mouth: OwnMouth | None = None
) -> Path:
    """Makes a model's identity adapter the client's newest beside the released model, with what its own lips do and
    its own mouth; its folder."""

    def write(place: Path) -> None:
        adapters.save_adapter(model, adapters.IDENTITY, place)
        for own in (hearing, mouth):
            if own is not None:
                own.save(place)

    return run.client(client).keep_adapter(_round_of(run), write, took_part=False)


def _round_of(folder: RunFolder) -> int:
    """The round that the adapter belongs to; older versions wrote down the checkpoints' alone."""
    released = folder.released_round()
    if released is not None:
        return released
    checkpoint = folder.checkpoint()
    return checkpoint.round if checkpoint else 0


def varied_windows(
    trainer: LocalTrainer, people: People, config: TrainConfig, client: str, steps: int, seed: int
) -> Iterator[WindowBatch]:
    """Batches of a client's windows without end, seen and heard a little differently each time: one clip of three
    seconds would else teach its light and where its head was.

    One pass over the clips gives those of all steps, unless so many of each clip would not fit into memory.
    """
    local, rng, base = config.local, np.random.default_rng(seed), bare_denoiser(trainer.model)
    # What is heard stays to be heard; of the reference's lips as much is told as when the backbone was trained.
    lips = base.knows_lips() and (base.takes_reference_lips() or base.takes_bent())
    size, most = local.batch_size, config.stream.shuffle_windows * people.training_pieces(client)
    for number in count():
        batches = people.batches(
            client,
            window=trainer.window,
            windows=max(size, min(steps * local.accumulate * size, most)),
            batch_size=size,
            seed=derive_seed(seed, "pass", number),
            stream=config.stream,
            wanted=Wanted(pictures=True, lips=lips),
        )
        for batch in batches:
            windows = vary_windows(trainer.pipeline, batch, rng)
            tell(base, windows, 0.0, rng)
            yield windows
