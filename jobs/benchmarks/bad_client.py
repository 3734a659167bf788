"""What one client that lies about its update does to the model: of eight, sixteen and sixty-four, after ten rounds.

python jobs/benchmarks/bad_client.py --shards shards/crowd32 --pretrained models/young32 --seeds 0 1 2

Drawn faces of 32 pixels, as in jobs/configs/audit.yaml, secure sums without noise, everybody in every round. The bad
client trains as all do, turns its update round, makes it as long as it may be, and claims the largest weight that it
can: by the project's code, or in a vector that it writes itself. Held-out loss is that of people whom nobody trains
on. Before:

fedtalk prepare --corpus synthetic --size 32 --autoencoder patch --identities 100 --clips 1 --unseen 0 --seed 7 \\
  --out shards/public32
fedtalk prepare --corpus synthetic --size 32 --autoencoder patch --identities 80 --clips 2 --unseen 16 --seed 12 \\
  --out shards/crowd32
fedtalk pretrain --shards shards/public32 --out models/young32 --steps 300
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.config import parse_config
from fedtalk_ray.evaluation.statistics import interval
from fedtalk_ray.federation.cohorts import dealt
from fedtalk_ray.federation.roster import extend_roster
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.messages import ClientReport
from fedtalk_ray.privacy.fixed_point import to_ring
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.noise import system_rng
from fedtalk_ray.privacy.protocol import STAGES
from fedtalk_ray.privacy.update_codec import UpdateCodec
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.people import people_of

COHORTS = (8, 16, 64)

LIE = 1e9
"""The liar's weight."""

Lie = Literal["none", "update", "vector"]

CASES: dict[str, tuple[Lie, int, dict[str, Any]]] = {
    "nobody lies": ("none", 1, {}),
    "one lies": ("update", 1, {}),
    "one writes its own vector": ("vector", 1, {}),
    "one lies, C 30": ("update", 1, {"clip_norm": 30.0}),
    "nobody lies, groups of eight": ("none", 8, {}),
    "one writes its own vector, groups of eight": ("vector", 8, {}),
}
"""What the liar lies about, how many groups (of 64 clients; fewer have one), and the settings of `privacy`."""


class OwnVector:
    """An `UpdateCodec` by which the liar writes as much weight as three quarters of a cohort may have, beside that of
    the others, and a sum as long as that allows; the server finds nothing amiss."""

    def __init__(self, codec: UpdateCodec) -> None:
        self._codec = codec

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def encode(
        self, update: np.ndarray, weight: float, clip_norm: float, cohort: int, rng: np.random.Generator
    ) -> np.ndarray:
        if weight < LIE:
            return self._codec.encode(update, weight, clip_norm, cohort, rng)
        direction = update / np.linalg.norm(update.astype(np.float64)) * self._codec.zoom
        heavy = 0.75 * cohort / max(1.0, float(np.abs(direction).max()))
        values = heavy * np.concatenate([direction, [1.0, 0.0]])
        return to_ring(np.rint(values * self._codec.scale).astype(np.int64))


class SlotWithALiar(ClientSlot):
    """The first client lies."""

    liar = ""

    def _fit_one(
        self, round_number: int, client: str, shared: np.ndarray, call: int
    ) -> tuple[ClientReport, np.ndarray]:
        report, update = super()._fit_one(round_number, client, shared, call)
        if client == self.liar:
            # Cut to the clip norm, and to the largest weight, by the client's own code.
            return replace(report, weight=LIE), -1e6 * update
        return report, update

    def write_own_vectors(self) -> None:
        self._secure._codec = cast(UpdateCodec, OwnVector(self._secure._codec))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cohorts", type=int, nargs="+", default=list(COHORTS))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3)
    chosen = parser.parse_args(arguments)
    print("| clients | " + " | ".join(["before", *chosen.cases]) + " |", flush=True)
    print("|---" * (len(chosen.cases) + 2) + "|", flush=True)
    for count in chosen.cohorts:
        cells, before = [], ""
        for case in chosen.cases:
            lie, groups, privacy = CASES[case]
            found = []
            for seed in chosen.seeds if groups <= count // 8 else ():
                with tempfile.TemporaryDirectory() as run:
                    config = config_of(chosen, Path(run) / "run", count, seed, groups, privacy)
                    found.append(train(config, lie))
                print(f"{count}, {case}, seed {seed}: {found[-1]}", file=sys.stderr, flush=True)
            before = before or shown([first for first, _ in found])
            cells.append(shown([last for _, last in found]) if found else "")
        print(f"| {count} | " + " | ".join([before, *cells]) + " |", flush=True)


def config_of(
    chosen: argparse.Namespace, run: Path, count: int, seed: int, groups: int, privacy: dict[str, Any]
) -> TrainConfig:
    tree = {
        "run": str(run),
        "shards": chosen.shards,
        "pretrained": chosen.pretrained,
        "seed": seed,
        "phases": ["faces"],
        "rounds": chosen.rounds,
        "lora_aggregation": "ab",
        "cohort": {"size": count, "clients": people(chosen.shards)[:count]},
        "strategy": {"name": "fedavg", "groups": groups},
        "local": {"steps": chosen.steps, "identity_steps": 0, "vary": False, "batch_size": 4},
        "privacy": {"samples_cap": 300, **privacy},
    }
    return parse_config(tree, "jobs/benchmarks/bad_client.py")


def people(shards: str) -> list[str]:
    config = parse_config({"run": "r", "shards": shards, "pretrained": "p", "phases": ["faces"]}, "")
    found = people_of(config).clients
    assert found is not None
    return list(found)


def train(config: TrainConfig, lie: Lie) -> tuple[float, float]:
    """Held-out loss before the first round and after the last, all in this process."""
    slot, run = SlotWithALiar(config), RunFolder(Path(config.run))
    shared, cohort = slot.start(), sorted(config.cohort.clients or ())
    slot.liar = "" if lie == "none" else cohort[0]
    if lie == "vector":
        slot.write_own_vectors()
    save_checkpoint(run.checkpoints, Checkpoint(0, shared, {}), config_fingerprint(config))
    extend_roster(run.roster, SigningKey.kept_in(run.server_key).public, slot.enrol(cohort))
    server = ParameterServer(config.run, config)
    unseen = people_of(config).manifest.unseen()

    def loss() -> float:
        figure = slot.held_out_loss(unseen, server.round(), server.released())
        return figure.total / figure.people

    first = loss()
    for number in range(1, config.rounds + 1):
        for place, group in enumerate(dealt(cohort, config.strategy.groups, system_rng())):
            slot.train(group, server.shared(), server.begin(number, group, slot.backbone()), number)
            frames = dict.fromkeys(group, b"")
            for stage in STAGES:
                _, payload = slot.answer(stage, frames)
                frames = server.collect(stage, payload).frames
            if config.strategy.groups > 1:
                server.set_aside(number, None, place == 0)
        server.finish(number, groups=config.strategy.groups)
    return first, loss()


def shown(values: list[float]) -> str:
    found = interval(values)
    return f"{found.mean:.3f}" + (f" ± {found.half_width:.3f}" if found.half_width is not None else "")


if __name__ == "__main__":
    main(sys.argv[1:])
