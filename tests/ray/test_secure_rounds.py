"""Secure rounds on real Ray actors: against plain sums, with slots that die, and all that reaches the server."""

import hashlib
import json
import stat
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import cloudpickle
from scipy.stats import chisquare
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedtalk_ray.actors import secure_round as exchange
from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.roster import extend_roster
from fedtalk_ray.federation.secure_aggregator import make_codec
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.messages import FIELDS, TO_SERVER, Advertisement, Consistency, MaskedInput, SealedShares, Unmasking
from fedtalk_ray.model.adapters import to_vector
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.protocol import STAGES, Frame
from fedtalk_ray.privacy.publication import TELLS_OF_THE_COHORT
from fedtalk_ray.privacy.wire import decode, encode
from fedtalk_ray.rounds import train
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, load_checkpoint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import read_history
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import load_manifest
from tests.ray.private_bytes import private_bytes

Make = Callable[..., TrainConfig]

PRIVACY = {"insecure_min_survivors": 2, "samples_cap": 400, "clip_norm": 1.0}


def secure(make_config: Make, run: Path, shards: Path, **changes: Any) -> TrainConfig:
    tree = {"aggregation": "secure", "shards": str(shards), "privacy": PRIVACY, "cohort": {"size": 7}, "server": {}}
    return make_config(run, **tree | {"rounds": 1} | changes)


def parameters(config: TrainConfig) -> np.ndarray:
    checkpoint = load_checkpoint(Path(config.run) / "checkpoints")
    assert checkpoint is not None
    return checkpoint.parameters


def in_the_clear(config: TrainConfig, folder: Path, clients: list[str]) -> tuple[np.ndarray, np.ndarray, float]:
    """Round 1 of these clients by a bare loop: start, plain weighted mean of their updates, sum of omega_k."""
    tree = config.model_dump(mode="json") | {"run": str(folder), "aggregation": "plain"}
    slot = ClientSlot(TrainConfig.model_validate(tree | {"privacy": {}}))
    start = slot.start()
    _, update = slot.fit(clients, 1, start)
    assert update is not None
    return start, update.weighted_sum / update.total_weight, update.total_weight / PRIVACY["samples_cap"]


def check_sum(config: TrainConfig, folder: Path, survivors: list[str]) -> None:
    """The shared parameters after round 1 are those of exactly these survivors, to within the stated bound."""
    start, mean, weights = in_the_clear(config, folder, survivors)
    bound = make_codec(config, len(start)).error_bound(len(survivors), weights, PRIVACY["clip_norm"])
    moved = float(np.linalg.norm(mean))
    assert bound < 0.05 * moved, "a bound this loose would say nothing"
    assert np.linalg.norm(parameters(config) - start - mean) <= bound + 1e-5 * moved


def test_a_third_of_the_slots_dies_in_mid_round_and_the_sum_is_the_survivors(
    make_config: Make, crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three slots is killed when its clients have dealt their shares; their masks must come off the sum."""
    config = secure(make_config, tmp_path / "run", crowd, slots={"count": 3}, rounds=2)
    answers_of, killed = exchange._answers, []

    def kill_after_sharing(pool: Any, number: int, stage: str, seats: list, *rest: Any) -> list:
        heard = answers_of(pool, number, stage, seats, *rest)
        if stage == "share" and not killed:
            slot, clients = seats[-1]
            killed.extend(clients)
            ray.kill(slot.actor)
        return heard

    monkeypatch.setattr(exchange, "_answers", kill_after_sharing)
    train(config)
    first, second = read_history(tmp_path / "run" / "history.jsonl")
    assert first["survivors"] == 5 and first["counts"]["share"] == 7 and first["counts"]["mask"] == 5
    assert first["refused"]["slot died"] == 2
    # Round 2 goes on with another slot in its place, and everybody is back in it.
    assert second["survivors"] == 7 and "aborted" not in second
    survivors = [name for name in load_manifest(crowd).clients() if name not in killed]
    kept = load_checkpoint_of_round(config, 1)
    start, mean, weights = in_the_clear(config, tmp_path / "bare", survivors)
    bound = make_codec(config, len(start)).error_bound(5, weights, PRIVACY["clip_norm"])
    assert bound < 0.05 * np.linalg.norm(mean)
    assert np.linalg.norm(kept - start - mean) <= bound + 1e-5 * np.linalg.norm(mean)


def test_over_two_runs_clients_answer_as_often_as_they_agreed_to(
    make_config: Make, crowd: Path, tmp_path: Path
) -> None:
    """Three rounds were agreed to. The second run's second one is gone through without anybody."""
    agreement = {"ledgers": str(tmp_path / "ledgers"), "rounds": 3}
    for name in ("one", "two"):
        train(secure(make_config, tmp_path / name, crowd, rounds=2, agreement=agreement, slots={"count": 1}))
    assert [record.get("survivors") for record in read_history(tmp_path / "one" / "history.jsonl")] == [7, 7]
    first, second = read_history(tmp_path / "two" / "history.jsonl")
    assert first["survivors"] == 7
    assert second["aborted"] == "too few" and second["refused"] == {"not agreed to": 7}


def test_where_cohorts_are_hidden_nothing_that_is_told_counts_them(
    make_config: Make, crowd: Path, tmp_path: Path
) -> None:
    """S8: the history with its counts voided the release view. They are in the server's own log."""
    noise = {"mechanism": "skellam", "noise_multiplier": 0.1, "insecure_min_survivors": 2, "clip_norm": 1.0}
    config = secure(make_config, tmp_path / "run", crowd, privacy=noise | {"samples_cap": 400})
    train(config)
    run = RunFolder(tmp_path / "run")
    (record,) = read_history(run.history_file)
    (whole,) = read_history(run.server_log)
    assert not TELLS_OF_THE_COHORT & record.keys()
    assert record["epsilon"] > 0 and {"counts", "survivors", "seconds"} <= whole.keys()
    assert {name: whole[name] for name in record} == record
    for private in (run.checkpoints, run.clients_folder):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    tags = EventAccumulator(str(run.tensorboard)).Reload().Tags()["scalars"]
    assert tags and not [tag for tag in tags if TELLS_OF_THE_COHORT & set(tag.split("/"))]


def test_more_are_asked_than_needed_and_a_slot_takes_several_chunks_of_one_exchange(
    make_config: Make, crowd: Path, tmp_path: Path
) -> None:
    """Seven are asked, in chunks of one; the round closes when five are done, or a few more that were at it."""
    config = secure(make_config, tmp_path / "run", crowd, cohort={"size": 5, "over_select": 0.4})
    train(config)
    (record,) = read_history(tmp_path / "run" / "history.jsonl")
    assert record["counts"]["cohort"] == 7 and 5 <= record["survivors"] == record["counts"]["trained"] <= 7
    assert "aborted" not in record and record["update_norm"] > 0
    assert record["refused"].get("late", 0) == 7 - record["survivors"]


def load_checkpoint_of_round(config: TrainConfig, number: int) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(Path(config.run) / "checkpoints" / f"round-{number:05d}" / "arrays.safetensors")["parameters"]


class Recorder:
    """A parameter server that writes down every argument it is called with."""

    def __init__(self, server: ParameterServer) -> None:
        self.server, self.seen = server, []

    def call(self, method: str, *arguments: Any) -> Any:
        self.seen.append((method, arguments))
        return getattr(self.server, method)(*arguments)


@pytest.fixture(scope="module")
def recorded(make_config: Make, crowd: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One secure FedAvg round of seven clients in one slot and one server, in this process, all calls recorded."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    config = secure(make_config, folder, crowd, strategy={"name": "fedavg"}, rounds=2)
    slot, clients = ClientSlot(config), load_manifest(crowd).clients()
    start = slot.start()
    fingerprint = config_fingerprint(config)
    save_checkpoint(folder / "checkpoints", Checkpoint(0, start, {}), fingerprint)
    key = SigningKey.kept_in(RunFolder(folder).server_key)
    extend_roster(RunFolder(folder).roster, key.public, slot.enrol(clients))
    server = Recorder(ParameterServer(str(folder), config))
    plan = server.call("begin", 1, clients, slot.backbone())
    said = slot.train(clients, start, plan)
    assert said.clients == tuple(clients)
    told = [said]
    updates = dict(slot._secure._updates)
    frames = dict.fromkeys(said.clients, b"")
    for stage in STAGES:
        said, payload = slot.answer(stage, frames)
        told.append(said)
        collected = server.call("collect", stage, payload)
        assert collected.aborted is None and not said.refused
        frames = collected.frames
    figures = server.call("finish", 1)
    return {"config": config, "slot": slot, "seen": server.seen, "updates": updates, "figures": figures, "said": told}


def test_a_secure_round_is_the_plain_one_for_fedavg(recorded: dict[str, Any], tmp_path: Path) -> None:
    check_sum(recorded["config"], tmp_path / "bare", load_manifest(recorded["config"].shards).clients())
    assert recorded["figures"]["clip_fraction"] == 0.0


def test_a_secure_round_is_the_plain_one_for_isfa(make_config: Make, crowd: Path, tmp_path: Path) -> None:
    """Through Ray, as a user runs it; what the run leaves tells of no single client."""
    config = secure(make_config, tmp_path / "run", crowd, evaluation={"sample_every": 1, "windows": 1, "clients": 2})
    run = train(config)
    check_sum(config, tmp_path / "bare", load_manifest(crowd).clients())
    record = read_history(run / "history.jsonl")[0]
    assert "clients" not in record and "loss" not in record and np.isfinite(record["held_out_loss"])
    assert record["survivors"] == 7 and record["bytes_up"] > 0
    for client in load_manifest(crowd).clients():
        key = RunFolder(run).client(client).signing_key
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        state = json.loads(RunFolder(run).client(client).protocol_state.read_text())
        assert state["exchange"] == 1 and state["charged"] == 1
    assert (run / "adapters" / "shared" / "adapter_model.safetensors").is_file()


def test_groups_have_sums_of_their_own_and_their_median_is_taken(
    make_config: Make, crowd: Path, tmp_path: Path
) -> None:
    """Seven clients in three groups, two rounds: everybody answers each round once, in one of three exchanges."""
    config = secure(make_config, tmp_path / "run", crowd, rounds=2, strategy={"groups": 3})
    run = train(config)
    for record in read_history(run / "history.jsonl"):
        assert record["survivors"] == 7 and record["counts"]["mask"] == record["counts"]["cohort"] == 7
        assert record["update_norm"] > 0 and not record["refused"]
    for client in load_manifest(crowd).clients():
        state = json.loads(RunFolder(run).client(client).protocol_state.read_text())
        assert state["charged"] == 2 and 4 <= state["exchange"] <= 6
    assert np.isfinite(parameters(config)).all()


def test_everything_that_reaches_the_server_is_on_the_list(recorded: dict[str, Any]) -> None:
    """Field by field and byte by byte: frames hold the listed fields and nothing beside them."""
    clients = load_manifest(recorded["config"].shards).clients()
    stages = []
    for method, arguments in recorded["seen"]:
        if method == "begin":
            number, cohort, backbone = arguments
            assert (number, cohort, len(backbone)) == (1, clients, 32)
        elif method == "finish":
            assert arguments == (1,)
        else:
            stage, frames = arguments
            stages.append(stage)
            kind = TO_SERVER[stage]
            for data in frames:
                frame = decode(Frame, data)
                assert frame.kind == kind.__name__ and len(frame.signature) == 64
                message = decode(kind, frame.body)
                assert {field.name for field in fields(message)} == FIELDS[kind].keys()
                # Canonical bytes: what the fields do not hold is not in the frame.
                assert encode(Frame(frame.kind, encode(message), frame.signature)) == bytes(data)
                assert message.client in clients
                check_sizes(message, len(clients), recorded["slot"].start().size)
    assert tuple(stages) == STAGES


def test_nothing_private_is_in_any_byte_that_leaves_a_secure_slot(recorded: dict[str, Any]) -> None:
    """Pictures, sound, latents, identity adapters and the updates themselves, searched for in all that was sent."""
    slot, config = recorded["slot"], recorded["config"]
    clients = load_manifest(config.shards).clients()
    secrets = list(private_bytes(slot, config, clients))
    assert len(secrets) > 10
    for name, (update, _) in recorded["updates"].items():
        # A stretch of sixteen values of which none is zero.
        begin = int(np.flatnonzero(np.convolve(update != 0, np.ones(16), "valid") == 16)[0])
        secrets.append((f"update of {name}", update[begin : begin + 16].tobytes()))
    frames = [bytes(frame) for method, arguments in recorded["seen"] if method == "collect" for frame in arguments[1]]
    sent = [*frames, slot.backbone(), *slot.enrol(clients).values(), cloudpickle.dumps(recorded["said"])]
    assert not [what for what, secret in secrets for each in sent if secret in each]
    # The search can find: a frame with an update in it would be caught.
    leak = frames[0] + recorded["updates"][clients[0]][0].tobytes()
    assert [what for what, secret in secrets if secret in leak] == [f"update of {clients[0]}"]


def check_shares(message: SealedShares | MaskedInput, clients: int) -> None:
    assert len(message.shares) == clients
    for share in message.shares:
        assert len(share.ciphertext) == (0 if share.holder == message.client else 33 + 16)
        assert len(share.commitment) == 32


def check_sizes(message: Any, clients: int, dimension: int) -> None:
    """Every field is as long as the protocol needs and no longer: no room for anything else."""
    match message:
        case Advertisement():
            assert len(message.encryption_key) == len(message.masking_key) == 32
        case SealedShares():
            check_shares(message, clients)
        case MaskedInput():
            assert len(message.seed_commitment) == 32
            check_shares(message, clients)
            assert message.vector.dtype == np.uint32 and message.vector.shape == (dimension + 2,)
        case Consistency():
            assert len(message.survivors) == 32
            assert message.complaints == ()
        case Unmasking():
            assert not message.masking_key_shares  # nobody dropped out
            assert not message.opened  # nobody complained
            assert all(len(share.value) == 33 for share in message.self_mask_shares)


def test_masked_vectors_are_uniform_and_tell_nothing_of_the_updates(recorded: dict[str, Any]) -> None:
    frames = next(arguments[1] for method, arguments in recorded["seen"] if arguments[0] == "mask")
    vectors = {
        message.client: message.vector for message in (decode(MaskedInput, decode(Frame, d).body) for d in frames)
    }
    # Seven tests: one in ten thousand runs fails by chance.
    for client, vector in vectors.items():
        counts = np.bincount(vector.view(np.uint8), minlength=256)
        assert chisquare(counts).pvalue > 1e-5
        update, _ = recorded["updates"][client]
        shown = vector[: len(update)].astype(np.float64)
        assert abs(np.corrcoef(shown, update)[0, 1]) < 5 / np.sqrt(len(update))
    # The test can fail: the vectors before masking are anything but uniform.
    update, weight = next(iter(recorded["updates"].values()))
    codec = make_codec(recorded["config"], len(update))
    bare = codec.encode(update, weight, 1.0, 7, np.random.default_rng(0))
    assert chisquare(np.bincount(bare.view(np.uint8), minlength=256)).pvalue < 1e-100


def test_a_secure_slot_tells_no_figures_in_the_clear(recorded: dict[str, Any]) -> None:
    slot, clients = recorded["slot"], load_manifest(recorded["config"].shards).clients()
    start = parameters(recorded["config"])
    for call in (
        lambda: slot.fit(clients, 2, start),
        lambda: slot.held_out_loss(clients, 2, start),
        lambda: slot.lip_agreement(clients, 2, start),
    ):
        with pytest.raises(RunError, match=r"not sent in the clear under aggregation: secure|(losses|lips).* not told"):
            call()


def test_a_secure_slot_shows_nobody_what_a_client_trained(recorded: dict[str, Any]) -> None:
    """The model that the last client left trained lies in the slot: no method of it may answer with that."""
    slot, clients = recorded["slot"], load_manifest(recorded["config"].shards).clients()
    start = parameters(recorded["config"])
    report, update = slot._fit_one(1, clients[0], start, 1)
    trained = to_vector(slot._model.trainer.shared())
    assert report.client == clients[0] and np.allclose(trained, start + update) and update.any()
    assert not np.isclose(slot.enter("faces", {}), trained).all(), "a phase begins as all slots know it"
    for call in (lambda: slot.export(None, 2), lambda: slot.sample(clients[:1], 2, None)):
        with pytest.raises(RunError, match="there is nothing to show yet"):
            call()


def test_a_client_trains_for_no_other_model_than_the_server_planned(recorded: dict[str, Any]) -> None:
    """The server plans with one model and sends another: nobody takes part."""
    slot, config = recorded["slot"], recorded["config"]
    server = ParameterServer(str(Path(config.run)), config)
    clients = load_manifest(config.shards).clients()
    plan = server.begin(2, clients, slot.backbone())
    said = slot.train(clients, server.shared() + np.float32(1e-3), plan)
    assert said.clients == () and set(said.refused) == {"not pinned"}
    # Nor a second time in a round that has their masked update: two sums could differ by one client.
    said = slot.train(clients, server.shared(), planned_again(recorded, server.shared()))
    assert said.clients == () and set(said.refused) == {"old round"}
    # Nor for an exchange that they have seen.
    said = slot.train(clients, parameters(config), recorded_plan(recorded))
    assert said.clients == () and set(said.refused) == {"old round"}


def planned_again(recorded: dict[str, Any], shared: np.ndarray) -> bytes:
    """Round 1 once more, as exchange 9, over the model as it is now."""
    from fedtalk_ray.privacy import protocol

    plan = recorded["slot"]._secure._plan
    key = SigningKey.kept_in(RunFolder(Path(recorded["config"].run)).server_key)
    changed = {"exchange": 9, "round": 1, "shared": hashlib.sha256(shared.tobytes()).digest()}
    return protocol.seal_frame(key, protocol.run_context(plan.run), type(plan)(**{**vars(plan), **changed}))


def recorded_plan(recorded: dict[str, Any]) -> bytes:
    from fedtalk_ray.privacy import protocol

    plan = recorded["slot"]._secure._plan
    key = SigningKey.kept_in(RunFolder(Path(recorded["config"].run)).server_key)
    assert is_dataclass(plan)
    old = type(plan)(**{**vars(plan), "exchange": 1, "round": 1})
    return protocol.seal_frame(key, protocol.run_context(plan.run), old)
