"""Checkpoints of the parameter server: one folder a round, complete or absent.

RUN/checkpoints/round-00003/state.json      round, phase, configuration hash
RUN/checkpoints/round-00003/arrays.safetensors   shared parameters, the server optimiser's state, results of phases

A phase begins with a checkpoint of its own, in the place of the last one of the phase before.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fedtalk_ray.errors import RunError
from fedtalk_ray.outputs import new_folder
from fedtalk_ray.recipe import VERSION, PhaseName
from fedtalk_ray.settings import TrainConfig

KEPT = 2
"""Checkpoints that stay on disk: the newest and the one before, in case the newest is lost with its disk block."""

_ALTERS_NO_ROUND: Any = {
    "run": True,
    "rounds": True,
    "address": True,
    "agreement": True,
    "debug": True,
    "evaluation": True,
    "failures": {"retries", "replace", "quorum", "grace_s"},
    "server": {"average"},
    "slots": {"placement_timeout_s", "at_least", "clients_per_slot", "num_cpus", "memory_mb"},
    "stream": {"reader", "direct_mb", "memory_mb"},
}
"""Settings that alter nothing of what a round computes."""

_FREE_TO_CHANGE: Any = _ALTERS_NO_ROUND | {"failures": True, "agreement": {"epsilon", "rounds", "delta"}}
"""Settings that a resumed run may change. Not where clients' ledgers lie: each remembers what it charged there. But the
deadline, which decides by the clock whose updates are in a round: no resume repeats that, and too short a one is what a
run may have ended by."""


@dataclass
class Checkpoint:
    """round: rounds gone through so far. parameters: float32 [D]. optimizer: its named arrays. clip_norm: the next
    round's, where it adapts. phase: which the parameters belong to. began: the round after which it began. results:
    what each phase before ended with, float32 arrays in their order. pairs: the LoRA pairs that the parameters are, as
    (outputs, rank, inputs), where the server must know (`federation.lora_factors`). mean_weight: of the clients of the
    phase's last round, where secure sums tell it."""

    round: int
    parameters: np.ndarray
    optimizer: dict[str, np.ndarray]
    clip_norm: float | None = None
    phase: PhaseName = "faces"
    began: int = 0
    results: dict[PhaseName, np.ndarray] = field(default_factory=dict)
    pairs: tuple[tuple[int, int, int], ...] = ()
    mean_weight: float | None = None


def config_digest(config: TrainConfig) -> bytes:
    """SHA-256 over every setting that changes what a round computes: what clients and server agree on.

    Not where a client's clips and the model's files lie: on every machine elsewhere. The frozen weights have a hash of
    their own in each plan.
    """
    return _digest(config, _ALTERS_NO_ROUND | {"shards": True, "pretrained": True})


def config_fingerprint(config: TrainConfig) -> str:
    """Names every setting that a resumed run must have as it was, for people."""
    return _digest(config, _FREE_TO_CHANGE).hex()[:16]


def _digest(config: TrainConfig, exclude: Any) -> bytes:
    tree = config.model_dump(mode="json", exclude=exclude) | {"version": VERSION}
    if config.local.schedule == "cosine" or config.phases[-1] != "faces":
        # The learning rate of every round depends on how many there are, and so does what the next phase begins with.
        tree["rounds"], tree["averaged"] = config.rounds, config.server.average
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).digest()


def save_checkpoint(folder: Path, checkpoint: Checkpoint, fingerprint: str, kept: int = KEPT) -> None:
    """Writes one round's folder whole, then removes all but the newest `kept`, which are at least `KEPT`."""
    arrays = {f"optimizer.{name}": array for name, array in checkpoint.optimizer.items()}
    arrays |= {f"result.{name}": array for name, array in checkpoint.results.items()}
    with new_folder(_folder(folder, checkpoint.round), overwrite=True) as place:
        save_file({"parameters": checkpoint.parameters, **arrays}, place / "arrays.safetensors")
        state = {"round": checkpoint.round, "config": fingerprint, "clip_norm": checkpoint.clip_norm}
        state |= {"phase": checkpoint.phase, "began": checkpoint.began, "results": list(checkpoint.results)}
        state |= {"pairs": checkpoint.pairs, "mean_weight": checkpoint.mean_weight}
        (place / "state.json").write_text(json.dumps(state))
    for old in _folders(folder)[: -max(kept, KEPT)]:
        shutil.rmtree(old)


def drop_checkpoint(folder: Path, round_number: int) -> None:
    """Removes one round's checkpoint, so that the one before is the newest."""
    shutil.rmtree(_folder(folder, round_number))


def load_checkpoint(folder: Path, config: TrainConfig | None = None) -> Checkpoint | None:
    """The newest checkpoint, or None when there is none.

    Raises `RunError` for a damaged one, and for one of another configuration when one is given.
    """
    folders = _folders(folder)
    if not folders:
        return None
    newest = folders[-1]
    try:
        state = json.loads((newest / "state.json").read_text())
        arrays = load_file(newest / "arrays.safetensors")
        checkpoint = Checkpoint(
            state["round"],
            arrays.pop("parameters"),
            {name.removeprefix("optimizer."): array for name, array in arrays.items() if name.startswith("optimizer.")},
            state.get("clip_norm"),
            state.get("phase", "faces"),
            state.get("began", 0),
            {name: arrays[f"result.{name}"] for name in state.get("results", ())},
            tuple((outputs, rank, inputs) for outputs, rank, inputs in state.get("pairs", ())),
            state.get("mean_weight"),
        )
        written_by = state["config"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(f"checkpoint {newest} is damaged ({error}); remove it to go on from the one before") from error
    if config is not None and written_by != config_fingerprint(config):
        raise RunError(
            f"checkpoint {newest} belongs to another configuration ({written_by}, not {config_fingerprint(config)}), "
            f"or to another version of the recipe than {VERSION}; resume with the run's own config.yaml and the "
            "version that began it, or give this one another `run` folder"
        )
    return checkpoint


def mean_parameters(folder: Path, rounds: int, began: int = 0) -> np.ndarray:
    """The mean of the shared parameters after the newest `rounds` rounds, float32 [D]; of those there are, if fewer.

    began: the round after which the phase began. What it began with is no round, and counts only while there is none.
    Raises `RunError` for a damaged one.
    """
    newest = _folders(folder)
    chosen = [place for place in newest if place > _folder(folder, began)][-rounds:] or newest[-1:]
    total: np.ndarray | None = None
    for place in chosen:
        try:
            parameters = load_file(place / "arrays.safetensors")["parameters"]
        except (OSError, KeyError, SafetensorError) as error:
            raise RunError(
                f"checkpoint {place} is damaged ({error}); remove it, and the mean is of the others"
            ) from error
        total = parameters.astype(np.float64) if total is None else total + parameters
    if total is None:
        raise RunError(f"{folder} holds no checkpoint to average")
    return (total / len(chosen)).astype(np.float32)


def _folder(folder: Path, round_number: int) -> Path:
    return folder / f"round-{round_number:05d}"


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("round-*") if path.is_dir())
