"""Secure rounds on real Ray actors: against plain sums, with slots that die, and all that reaches the server."""

import json
import stat
from dataclasses import fields
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
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.protocol import STAGES, Frame
from fedtalk_ray.privacy.publication import TELLS_OF_THE_COHORT
from fedtalk_ray.privacy.wire import decode, encode
from fedtalk_ray.rounds import train
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import read_history
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import load_manifest
from tests.ray.conftest import ALONE, Make, parameters
from tests.ray.private_bytes import private_bytes

PRIVACY = {"insecure_min_survivors": 2, "samples_cap": 400, "clip_norm": 1.0}


def secure(make_config: Make, run: Path, **changes: Any) -> TrainConfig:
    tree = {"aggregation": "secure", "privacy": PRIVACY, "cohort": {"size": 7}, "server": {}}
    return make_config(run, **tree | {"rounds": 1} | changes)


def in_the_clear(config: TrainConfig, folder: Path, clients: list[str]) -> tuple[np.ndarray, np.ndarray, float]:
    """Round 1 of these clients by a bare loop: start, plain weighted mean of their updates, sum of omega_k."""
    tree = config.model_dump(mode="json") | {"run": str(folder), "aggregation": "plain", "agreement": {}}
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
    assert np.linalg.norm(parameters(config, 1) - start - mean) <= bound + 1e-5 * moved


def test_slots_and_servers_die_in_mid_round_and_clients_answer_as_often_as_they_agreed_to(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 1: one of three slots dies when its clients have dealt their shares; their masks must come off the sum.
    Round 2: the server dies before anybody is masked. Round 3, resumed: after all are. A second run asks once more than
    was agreed to."""
    agreement = {"ledgers": str(tmp_path / "ledgers"), "rounds": 3}
    clients, slots = load_manifest(make_config(tmp_path).shards).clients(), {"count": 3}
    config = secure(make_config, tmp_path / "run", slots=slots, rounds=2, agreement=agreement)
    answers_of, ask, killed, at = exchange._answers, exchange.ask, [], [0]
    due = {2: STAGES[0], 3: "mask"}

    def kill_a_slot(pool: Any, stage: str, seats: list, *rest: Any) -> list:
        heard = answers_of(pool, stage, seats, *rest)
        if stage == "share" and not killed:
            slot, held = seats[-1]
            killed.extend(held)
            ray.kill(slot.actor)
        return heard

    def kill_the_server(server: Any, method: str, *arguments: Any, **how: Any) -> Any:
        found = ask(server, method, *arguments, **how)
        if method == "begin":
            at[0] = arguments[0]
        if method == "collect" and due.get(at[0]) == arguments[0]:
            del due[at[0]]
            ray.kill(server, no_restart=False)
        return found

    monkeypatch.setattr(exchange, "_answers", kill_a_slot)
    monkeypatch.setattr(exchange, "ask", kill_the_server)
    run = RunFolder(train(config))
    check_sum(config, tmp_path / "bare", [name for name in clients if name not in killed])
    train(secure(make_config, tmp_path / "run", slots=slots, rounds=3, agreement=agreement), resume=True)
    monkeypatch.undo()
    first, second, third = read_history(run.history_file)
    assert first["survivors"] == 5 and first["counts"]["share"] == 7 and first["counts"]["mask"] == 5
    assert first["refused"]["slot died"] == 2 and first["bytes_up"] > 0 and "attempts" not in first
    assert not {"clients", "loss"} & first.keys() and np.isfinite(first["held_out_loss"])
    # Another slot is in its place, and everybody is back.
    assert second["survivors"] == 7 and second["attempts"] == 2 and "aborted" not in second
    assert not due and third["aborted"] == "too few" and third["refused"]["old round"] == 7
    assert parameters(config).tobytes() == parameters(config, 2).tobytes()
    for client in clients:
        own = run.client(client)
        assert stat.S_IMODE(own.signing_key.stat().st_mode) == 0o600
        assert json.loads(own.protocol_state.read_text())["charged"] == 3 - (client in killed)
    assert run.shared_adapter.joinpath("adapter_model.safetensors").is_file()
    train(secure(make_config, tmp_path / "two", agreement=agreement, slots=ALONE))
    (last,) = read_history(tmp_path / "two" / "history.jsonl")
    assert last["aborted"] == "too few" and last["refused"] == {"not agreed to": 5}


def test_where_cohorts_are_hidden_nothing_that_is_told_counts_them(make_config: Make, tmp_path: Path) -> None:
    """S8: the history with its counts voided the release view. They are in the server's own log."""
    noise = {"mechanism": "skellam", "noise_multiplier": 0.1, "insecure_min_survivors": 2, "clip_norm": 1.0}
    config = secure(make_config, tmp_path / "run", privacy=noise | {"samples_cap": 400}, slots=ALONE)
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
    make_config: Make, tmp_path: Path
) -> None:
    """Seven are asked, in chunks of two; the round closes when five are done, or a few more that were at it."""
    config = secure(make_config, tmp_path / "run", cohort={"size": 5, "over_select": 0.4}, slots=ALONE)
    train(config)
    (record,) = read_history(tmp_path / "run" / "history.jsonl")
    assert record["counts"]["cohort"] == 7 and 5 <= record["survivors"] == record["counts"]["trained"] <= 7
    assert "aborted" not in record and record["update_norm"] > 0
    assert record["refused"].get("late", 0) == 7 - record["survivors"]


class Recorder:
    """A parameter server that writes down every argument it is called with."""

    def __init__(self, server: ParameterServer) -> None:
        self.server, self.seen = server, []

    def call(self, method: str, *arguments: Any) -> Any:
        self.seen.append((method, arguments))
        return getattr(self.server, method)(*arguments)


@pytest.fixture(scope="module")
def recorded(make_config: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One secure FedAvg round of seven clients in one slot and one server, in this process, all calls recorded."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    config = secure(make_config, folder, strategy={"name": "fedavg"}, rounds=2)
    slot, clients = ClientSlot(config), load_manifest(config.shards).clients()
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


@pytest.mark.nightly
def test_groups_have_sums_of_their_own_in_every_phase_and_nothing_central_is_needed(
    make_config: Make, tmp_path: Path
) -> None:
    """From random weights; seven clients in three groups: everybody answers each round once, in one of three exchanges.
    Statistics too are seen as a sum alone."""
    config = secure(
        make_config,
        tmp_path / "run",
        pretrained=None,
        shared="backbone",
        phases=["units", "faces", "calibration"],
        strategy={"groups": 3},
        slots=ALONE,
    )
    run = RunFolder(train(config))
    records = read_history(run.history_file)
    for record in records:
        assert record["survivors"] == 7 and record["counts"]["mask"] == record["counts"]["cohort"] == 7
        assert record["update_norm"] > 0 and not record["refused"] and not {"clients", "loss"} & record.keys()
    for client in load_manifest(config.shards).clients():
        state = json.loads(run.client(client).protocol_state.read_text())
        assert state["charged"] == len(records) and 3 * len(records) - 2 <= state["exchange"] <= 3 * len(records)
    denoiser = TalkingHeadPipeline.from_pretrained(str(run.pipeline)).denoiser
    assert not (run.path / "adapters").exists()
    assert json.loads((run.pipeline / "model_index.json").read_text())["identity_encoder"] == [None, None]
    # Measured units, not the initial ones.
    assert denoiser.residual_std.max() < 1 and denoiser.lip_axes.any()
    assert not (denoiser.certainty == 1).all()


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
                check_sizes(message, len(clients), len(recorded["updates"][clients[0]][0]))
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


def test_a_secure_slot_tells_no_figures_and_trains_for_no_other_model_than_the_server_planned(
    recorded: dict[str, Any],
) -> None:
    slot, config = recorded["slot"], recorded["config"]
    clients, start = load_manifest(config.shards).clients(), parameters(config)
    for call in (
        lambda: slot.fit(clients, 2, start),
        lambda: slot.held_out_loss(clients, 2, start),
        lambda: slot.lip_agreement(clients, 2, start),
    ):
        with pytest.raises(RunError, match=r"not sent in the clear under aggregation: secure|(losses|lips).* not told"):
            call()
    server = ParameterServer(str(Path(config.run)), config)
    plan = server.begin(2, clients, slot.backbone())
    said = slot.train(clients, server.shared() + np.float32(1e-3), plan)
    assert said.clients == () and set(said.refused) == {"not pinned"}
