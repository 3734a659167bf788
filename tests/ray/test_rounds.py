"""Federated rounds on real Ray actors: against a bare loop, across a stop, and what crosses between actors."""

import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import cloudpickle

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.actors.slot import Slot
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.cohorts import sample_cohort
from fedtalk_ray.federation.failure_policy import QuorumLost
from fedtalk_ray.federation.lora_factors import settled
from fedtalk_ray.messages import FitReport, HeldOutFigure, PlainUpdate
from fedtalk_ray.model.adapters import load_identity, shared_parameters, to_vector
from fedtalk_ray.model.released import load_released
from fedtalk_ray.rounds import train
from fedtalk_ray.runs.checkpoints import load_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import read_history
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import load_manifest
from tests.ray.conftest import ALONE, Make, parameters
from tests.ray.private_bytes import private_bytes

AVERAGED = {"momentum": 0.5, "average": 2}


@pytest.fixture(scope="module")
def finished(make_config: Make, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Three rounds in one go, two slots; the mean of the last two is exported."""
    config = make_config(tmp_path_factory.mktemp("runs") / "whole", server=AVERAGED)
    train(config)
    return config


def check_close(found: np.ndarray, wanted: np.ndarray, first: np.ndarray) -> None:
    """Sums differ in order. AdamW divides by the gradient's own size, so rounding grows where that is almost 0."""
    moved, error = np.abs(wanted - first).max(), np.abs(found - wanted)
    assert moved > 1e-3
    assert error.max() < 2e-3 * moved and error.mean() < 1e-5 * moved


def test_two_actors_and_a_server_do_what_a_bare_loop_does(
    finished: TrainConfig, make_config: Make, tmp_path: Path
) -> None:
    """The paper's sums written out: one process, one client after the other, weights by hand, heavy-ball momentum."""
    config = make_config(tmp_path / "bare")
    slot = ClientSlot(config)
    manifest = load_manifest(config.shards)
    first = slot.start()
    theta, momentum = first, np.float32(0)
    for number in range(1, 4):
        cohort = sample_cohort(manifest.clients(), 2, config.seed, number)
        fitted, updates = zip(*(slot.fit([client], number, theta) for client in cohort), strict=True)
        scores = [answer.reports[0].score for answer in fitted]
        samples = [manifest.frames(client, "train") for client in cohort]
        weights = [n * exp(config.strategy.gamma * s) for n, s in zip(samples, scores, strict=True) if s is not None]
        deltas = [update.weighted_sum / update.total_weight for update in updates]
        mean = sum(w * delta for w, delta in zip(weights, deltas, strict=True)) / sum(weights)
        momentum = 0.5 * momentum + mean
        theta = (theta + momentum).astype(np.float32)
    check_close(parameters(finished), theta, first)


def test_a_run_that_was_lost_half_done_killed_and_cut_ends_bit_identical(
    finished: TrainConfig, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "rough"
    with pytest.raises(QuorumLost, match=r"round 1: 0 of 2 clients answered \(2 late\)"):
        train(make_config(run, server=AVERAGED, failures={"deadline_s": 0.01, "quorum": 1.0}))
    config = make_config(run, server=AVERAGED)
    checkpoint = load_checkpoint(run / "checkpoints")
    assert checkpoint is not None and checkpoint.round == 0
    # The clients of round 1 saved their adapters; the server did not apply the round.
    slot = ClientSlot(config)
    slot.start()
    slot.fit(sample_cohort(load_manifest(config.shards).clients(), 2, config.seed, 1), 1, parameters(config))
    call, killed = Slot.call, []

    def fatal(self: Slot, method: str, *arguments: Any, **how: Any) -> Any:
        asked = call(self, method, *arguments, **how)
        if method == "fit" and arguments[1] == 2 and not killed:
            killed.append(self)
            ray.kill(self.actor)
        return asked

    monkeypatch.setattr(Slot, "call", fatal)
    train(config, resume=True)
    monkeypatch.undo()
    assert killed and parameters(config).tobytes() == parameters(finished).tobytes()
    whole, resumed = (read_history(Path(folder) / "history.jsonl") for folder in (finished.run, run))
    for record in (*whole, *resumed):
        del record["seconds"], record["stage_seconds"]
    assert resumed == whole
    own, others = (RunFolder(Path(folder)).clients_folder for folder in (finished.run, run))
    adapters = list(own.glob("*/identity/adapter_model.safetensors"))
    assert adapters
    for adapter in adapters:
        assert (others / adapter.relative_to(own)).read_bytes() == adapter.read_bytes()
    # As if it had died while it evaluated its last round: no history line, no exported model.
    history = run / "history.jsonl"
    history.write_text("".join(f"{line}\n" for line in history.read_text().splitlines()[:2]))
    shutil.rmtree(run / "pipeline")
    train(config, resume=True)
    assert parameters(config).tobytes() == parameters(finished).tobytes()
    assert [record["round"] for record in read_history(history)] == [1, 2, 3]
    assert (run / "pipeline" / "model_index.json").is_file()


def test_a_run_leaves_what_it_promises_and_is_not_overwritten(finished: TrainConfig, make_config: Make) -> None:
    run = Path(finished.run)
    records = read_history(run / "history.jsonl")
    assert [record["round"] for record in records] == [1, 2, 3]
    for record in records:
        assert np.isfinite(record["held_out_loss"])
        assert sum(client["share"] for client in record["clients"]) == pytest.approx(1)
    for name in ("config.yaml", "pipeline/model_index.json", "adapters/shared/adapter_model.safetensors"):
        assert (run / name).is_file()
    for made in ("samples/*.mp4", "samples/*.png", "tensorboard/events.*"):
        assert list(run.glob(made)), made
    # What is exported is the mean of the last two rounds, while training went on from the last.
    folders = sorted((run / "checkpoints").glob("round-*"))
    assert [folder.name for folder in folders] == ["round-00002", "round-00003"]
    exported = to_vector(shared_parameters(load_released(RunFolder(run)).denoiser, "adapter"))
    mean = np.mean([parameters(finished, number) for number in (2, 3)], axis=0, dtype=np.float64)
    np.testing.assert_allclose(exported, mean, rtol=1e-5, atol=1e-8)
    with pytest.raises(RunError, match="belongs to another configuration"):
        train(make_config(run, server={"momentum": 0.9}), resume=True)
    with pytest.raises(RunError, match="already exists"):
        train(finished)


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    """Every array anywhere inside a message."""
    if isinstance(value, np.ndarray):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from arrays_in(getattr(value, field.name))
    elif isinstance(value, dict):
        yield from (array for inner in value.values() for array in arrays_in(inner))
    elif isinstance(value, (list, tuple)):
        yield from (array for inner in value for array in arrays_in(inner))


def test_nothing_private_crosses_in_any_message(make_config: Make, tmp_path: Path) -> None:
    """Calls everything that a slot offers to other actors and searches the very bytes that Ray would send."""
    config = make_config(tmp_path / "watched")
    slot = ClientSlot(config)
    manifest = load_manifest(config.shards)
    clients = manifest.clients()[:3]
    theta = slot.start()
    answers: dict[str, Any] = {"start": theta}
    answers["fit"] = slot.fit(clients, 1, theta)
    answers["held_out_loss"] = slot.held_out_loss(clients, 1, theta)
    answers["lip_agreement"] = slot.lip_agreement(manifest.unseen(), 1, theta)
    answers["lora_pairs"] = slot.lora_pairs()
    answers["sample"] = slot.sample(clients[:1], 1, theta)
    answers["export"] = slot.export(theta, str(tmp_path / "export"))
    answers["enter"] = slot.enter("faces", {})
    assert answers["enter"].tobytes() == theta.tobytes(), "not what the last client's training left in the model"
    offered = {name for name in dir(ClientSlot) if not name.startswith("_")}
    # What secure rounds are made of is recorded and looked at byte by byte in test_secure_rounds.
    secure = {"backbone", "enrol", "train", "answer"}
    # `stop` takes a number and returns nothing.
    assert slot.stop(0) is None
    assert set(answers) | secure == ClientSlot.ASKED, "a new method must be added here and its answer looked at"
    assert offered == ClientSlot.ASKED | {"stop", "ASKED"}

    answer, update = answers["fit"]
    assert (
        isinstance(answer, FitReport)
        and isinstance(update, PlainUpdate)
        and isinstance(answers["held_out_loss"], HeldOutFigure)
        and isinstance(answers["lip_agreement"], HeldOutFigure)
    )
    assert answers["lora_pairs"] == (), "only factors that the server works on"
    for name in ("sample", "export"):
        assert answers[name] is None
    allowed = {"start": {theta.shape}, "fit": {theta.shape}, "enter": {theta.shape}}
    secrets = list(private_bytes(slot, config, clients))
    assert len(secrets) > 10
    for name, answer in answers.items():
        assert {array.shape for array in arrays_in(answer)} <= allowed.get(name, set()), name
        sent = cloudpickle.dumps(answer)
        assert not [what for what, secret in secrets if secret in sent], name
    # The search can find: an update that carried an adapter along would be caught.
    kept = RunFolder(Path(config.run)).client(clients[0]).adapter_before(2)
    leak = cloudpickle.dumps({"update": theta, "more": load_identity(slot._model.trainer.model, kept)})
    assert [what for what, secret in secrets if secret in leak] == [f"identity adapter of {clients[0]}"]


def test_with_central_noise_epsilon_is_told_and_nothing_of_a_client(make_config: Make, tmp_path: Path) -> None:
    privacy = {"mechanism": "gaussian", "noise_multiplier": 1.0, "clip_norm": 1.0, "view": "server"}
    cohort = {"size": 4, "sampling": "uniform"}  # of seven: somebody is in both rounds
    watched = {"sample_every": 100, "windows": 1, "clients": 2, "speakers": 1}
    config = make_config(tmp_path / "noisy", rounds=2, privacy=privacy, cohort=cohort, evaluation=watched, slots=ALONE)
    run = train(config)
    first, second = read_history(run / "history.jsonl")
    assert 0 < first["epsilon_server"] < second["epsilon_server"] and first["noise_multiplier"] == 1.0
    assert not {"clients", "loss"} & {*first, *second}
    # Whose loss it is: the unseen person's, with the adapter that nobody trained.
    slot = ClientSlot(make_config(tmp_path / "noisy", rounds=2, privacy=privacy, cohort=cohort))
    slot.start()
    config = make_config(tmp_path / "noisy")
    unseen = load_manifest(config.shards).unseen()
    assert second["held_out_loss"] == pytest.approx(slot.held_out_loss(unseen, 2, parameters(config)).total, rel=1e-6)
    with pytest.raises(RunError, match="losses are not told where anything is promised"):
        slot.held_out_loss(load_manifest(config.shards).clients(), 2, parameters(config))
    assert second["lip_agreement"] == pytest.approx(slot.lip_agreement(unseen, 2, parameters(config)).total, rel=1e-6)
    with pytest.raises(RunError, match="how clients' lips move is not told"):
        slot.lip_agreement(load_manifest(config.shards).clients(), 2, parameters(config))


def test_factors_are_made_anew_as_a_bare_loop_does(make_config: Make, tmp_path: Path) -> None:
    more: dict[str, Any] = {"lora_aggregation": "svd", "rounds": 2, "server": {}, "strategy": {"name": "fedavg"}}
    config = make_config(tmp_path / "run", **more, slots=ALONE)
    train(config)
    slot, manifest = ClientSlot(make_config(tmp_path / "bare", **more)), load_manifest(config.shards)
    first, pairs = slot.start(), slot.lora_pairs()
    theta = first
    for number in (1, 2):
        cohort = sample_cohort(manifest.clients(), 2, config.seed, number)
        updates = [slot.fit([client], number, theta)[1] for client in cohort]
        weights = np.array([update.total_weight for update in updates])
        theta = theta + sum(update.weighted_sum for update in updates) / weights.sum()
        theta = settled(theta.astype(np.float32), pairs, "svd")
    found, (_, rank, inputs) = parameters(config), pairs[0]
    check_close(found, theta, first)
    inner = found[: rank * inputs].reshape(rank, inputs)
    np.testing.assert_allclose(inner @ inner.T, np.eye(rank), atol=1e-5)


def test_virtual_clients_train_by_ray_data_and_by_availability(make_config: Make, tmp_path: Path) -> None:
    """Twenty clients of seven people, two of them on in round 1 and one in round 2; read by Ray Data."""
    trace = tmp_path / "trace.csv"
    trace.write_text("client,on,off\nclient0000003,0,60\nclient0000011,0,120\n")
    config = make_config(
        tmp_path / "run",
        rounds=2,
        population={"clients": 20},
        cohort={"size": 2, "trace": str(trace)},
        stream={"reader": "ray"},
        slots=ALONE,
        evaluation={"sample_every": 100, "every": 2, "windows": 1, "clients": 1},
    )
    train(config)
    first, second = read_history(tmp_path / "run" / "history.jsonl")
    assert [report["client"] for report in first["clients"]] == ["client0000003", "client0000011"]
    assert [report["client"] for report in second["clients"]] == ["client0000011"]
    assert "held_out_loss" not in first and np.isfinite(second["held_out_loss"])
