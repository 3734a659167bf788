"""One whole secure exchange of a round in one process, with the classes that a run uses and a record of what came in.

Attacks look at it from the server's side. The folder is made for it and removed after; a run's own keys, roster and
ledgers are never touched.

    exchange = run_exchange(round)                                  everybody answers
    exchange = run_exchange(round, absent={"mask": {"s3"}})         s3 drops out before its masked input
    exchange = run_exchange(round, bad={"s3": vector})              s3 sends a vector of its own making
    one, two = run_twice(round)                                     the same keys, names and numbers, fresh secrets
"""

import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedtalk_ray.audits.attack import Round, fixed_clip_norm
from fedtalk_ray.federation.aggregation import WeightedSum
from fedtalk_ray.federation.roster import RosterFile, extend_roster
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.messages import Collected, PlainUpdate, Plan
from fedtalk_ray.privacy.keys import Roster, SigningKey
from fedtalk_ray.privacy.ledger import Charge, Ledger
from fedtalk_ray.privacy.protocol import STAGES
from fedtalk_ray.privacy.wire import Buffer
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import AgreementConfig, ServerConfig, TrainConfig
from fedtalk_ray.training.secure_clients import SecureClients

Absent = Mapping[str, set[str]]
"""stage -> clients that do not answer it, nor any later one."""


@dataclass(frozen=True)
class Exchange:
    """What an exchange left behind.

    config: the round's, as the exchange was run (`settings_for`). calls: every method of the server that was called,
    with its arguments. frames: stage -> what the server was sent, bytes. survivors: whose masked inputs are in the sum.
    update: the averaged update that the server opened, float32 [D]; None where it gave up, and `aborted` then says why.
    refused: reasons, by client or server, why something was not sent or not taken. charges: the ledger's, after.
    moved: whether the model is another one than before.
    """

    config: TrainConfig
    plan: Plan
    roster: Roster
    calls: list[tuple[str, tuple[Any, ...]]]
    frames: dict[str, list[bytes]]
    survivors: tuple[str, ...]
    update: np.ndarray | None
    aborted: str | None
    refused: Counter[str]
    charges: list[Charge]
    moved: bool


class BadClients(SecureClients):
    """Clients of whom some mask a vector of their own making, uint32 [D + 2], and keep to the protocol else."""

    def __init__(self, config: TrainConfig, audited: Round, vectors: Mapping[str, np.ndarray]) -> None:
        super().__init__(config, "faces", len(audited.shared), audited.frozen)
        self._vectors = vectors

    def _answer(self, client: str, stage: str, frame: bytes) -> bytes:
        if stage == "mask" and client in self._vectors:
            return self._sides[client].mask(frame, self._vectors[client])
        return super()._answer(client, stage, frame)


class RecordingServer(ParameterServer):
    """The parameter server, with a record of all that reaches it and of the update that it took its step by."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config.run, config)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.update: np.ndarray | None = None

    def begin(self, round_number: int, cohort: list[str], backbone: bytes) -> bytes:
        self.calls.append(("begin", (round_number, cohort, backbone)))
        return super().begin(round_number, cohort, backbone)

    def collect(self, stage: str, *answers: list[Buffer]) -> Collected:
        self.calls.append(("collect", (stage, *answers)))
        return super().collect(stage, *answers)

    def finish(self, round_number: int, aborted: str | None = None, groups: int = 1) -> dict[str, Any]:
        self.calls.append(("finish", (round_number, aborted)))
        return super().finish(round_number, aborted, groups)

    def _step(self, round_number: int, update: np.ndarray) -> None:
        self.update = update
        super()._step(round_number, update)


def settings_for(audited: Round, folder: Path) -> TrainConfig:
    """The round's configuration for one exchange in `folder`.

    The budget and what clients agreed to are left out: one exchange is to run, whatever is left, and no client's own
    ledger may pay for it.
    """
    config = audited.config
    privacy = config.privacy
    if privacy.mechanism != "none" and privacy.noise_multiplier is None:
        raise ValueError("the noise is not settled; take the configuration that the run wrote down")
    size = max(config.cohort.size, len(audited.updates))
    return config.model_copy(
        update={
            "run": str(folder),
            "phases": ["faces"],
            "strategy": config.strategy.model_copy(update={"groups": 1}),
            "privacy": privacy.model_copy(update={"epsilon": None}),
            "agreement": AgreementConfig(),
            "cohort": config.cohort.model_copy(update={"size": size}),
        }
    )


def central_sum(config: TrainConfig, updates: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
    """float64 [D]: the sum of one round under plain aggregation to which a real server adds the noise."""
    total = WeightedSum()
    for name, update in updates.items():
        total.add_clipped(update, weights[name], fixed_clip_norm(config))
    sent = PlainUpdate(1, total.vector(), total.total_weight)
    privacy = config.privacy.model_copy(update={"epsilon": None})
    alone = config.model_copy(update={"privacy": privacy, "server": ServerConfig()})
    with tempfile.TemporaryDirectory() as place:
        start = Checkpoint(0, np.zeros_like(sent.weighted_sum), {})
        save_checkpoint(RunFolder(Path(place)).checkpoints, start, config_fingerprint(alone))
        server = ParameterServer(place, alone)
        server.apply(1, sent, cohort=list(updates))
        return server.shared().astype(np.float64) * config.cohort.size * config.privacy.mean_weight


def enlarged(audited: Round, count: int) -> Round:
    """The round with so many clients at least: those who are missing are made up, each with what another one gives."""
    updates, weights = dict(audited.updates), dict(audited.weights)
    names = itertools.cycle(sorted(updates))
    new = (name for place in itertools.count() if (name := f"made-up-{place}") not in audited.updates)
    while len(updates) < count:
        name, like = next(new), next(names)
        updates[name], weights[name] = updates[like], weights[like]
    return replace(audited, updates=updates, weights=weights)


def shortened(audited: Round, values: int) -> Round:
    """The round with vectors of so many values at most, evenly out of those that there are."""
    step = -(-len(audited.shared) // values)
    updates = {name: np.ascontiguousarray(update[::step]) for name, update in audited.updates.items()}
    return replace(audited, shared=np.ascontiguousarray(audited.shared[::step]), updates=updates)


def clear_sum(audited: Round, names: Iterable[str]) -> tuple[np.ndarray, float]:
    """These clients' sum of weighted and clipped updates, in units of the clip norm, float64 [D], and of weights."""
    total, weights = np.zeros(len(audited.shared)), 0.0
    privacy = audited.config.privacy
    for name in names:
        weight, update = audited.weights[name], audited.updates[name].astype(np.float64)
        length = float(np.linalg.norm(update))
        if privacy.mechanism == "none":
            weight = min(weight, 1.0)
        else:
            length *= weight
        total += weight * update / max(length, fixed_clip_norm(audited.config))
        weights += weight
    return total, weights


def run_exchange(audited: Round, absent: Absent | None = None, bad: Mapping[str, np.ndarray] | None = None) -> Exchange:
    """Runs round 1 of a new run whose cohort is the round's clients, with their updates and weights.

    bad: client -> the vector that it masks in place of its own, uint32 [D + 2].
    """
    with tempfile.TemporaryDirectory() as place:
        config = open_run(audited, Path(place) / "run")
        return _run(audited, config, absent or {}, bad)


def run_twice(audited: Round) -> tuple[Exchange, Exchange]:
    """Two exchanges that agree in everything but what clients draw afresh: both start from one folder's copies."""
    with tempfile.TemporaryDirectory() as place:
        first = open_run(audited, Path(place) / "first")
        second = settings_for(audited, Path(place) / "second")
        one, two = RunFolder(Path(first.run)), RunFolder(Path(second.run))
        for folder, copy in ((one.path, two.path), (one.clients_folder, two.clients_folder)):
            shutil.copytree(folder, copy)
        return _run(audited, first, {}), _run(audited, second, {})


def open_run(audited: Round, folder: Path) -> TrainConfig:
    """A run's folder as it is before its first round: keys, roster, a checkpoint of the shared parameters."""
    config = settings_for(audited, folder)
    start = Checkpoint(0, np.ascontiguousarray(audited.shared, np.float32), {})
    run = RunFolder(folder)
    save_checkpoint(run.checkpoints, start, config_fingerprint(config))
    key = SigningKey.kept_in(run.server_key)
    clients = SecureClients(config, "faces", len(audited.shared), audited.frozen)
    extend_roster(run.roster, key.public, clients.enrol(sorted(audited.updates)))
    return config


def _run(audited: Round, config: TrainConfig, absent: Absent, bad: Mapping[str, np.ndarray] | None = None) -> Exchange:
    server = RecordingServer(config)
    clients = BadClients(config, audited, bad or {})
    before = server.shared().copy()
    cohort = sorted(audited.updates)
    frame = server.begin(1, cohort, audited.frozen)
    plan = clients.open_round(frame)
    for name in cohort:
        clients.join(name, before)
        clients.offer(name, audited.updates[name], audited.weights[name])
    refused: Counter[str] = Counter()
    frames: dict[str, bytes] = dict.fromkeys(cohort, b"")
    seen: dict[str, list[bytes]] = {}
    survivors: tuple[str, ...] = ()
    aborted, gone = None, set[str]()
    for stage in STAGES:
        gone |= absent.get(stage, set())
        answers, payload = clients.answer(stage, {name: frames[name] for name in frames if name not in gone})
        seen[stage] = [bytes(answer) for answer in payload]
        collected = server.collect(stage, payload)
        refused.update(answers.refused)
        refused.update(collected.rejected)
        frames, aborted = collected.frames, collected.aborted
        if aborted is not None:
            break
        if stage == "mask":
            survivors = tuple(sorted(frames))
    figures = server.finish(1, aborted)
    return Exchange(
        config,
        plan,
        RosterFile(RunFolder(Path(config.run)).roster).read()[0],
        server.calls,
        seen,
        survivors,
        server.update,
        figures.get("aborted"),
        refused,
        Ledger(RunFolder(Path(config.run)).ledger).charges,
        moved=not np.array_equal(before, server.shared()),
    )
