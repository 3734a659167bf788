"""`fedtalk audit` in its fast form on small runs, made by the real slot and server without Ray."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.audits import subject
from fedtalk_ray.audits.attack import Figure, Outcome
from fedtalk_ray.audits.attacks import available, identity_leakage, inversion, load_attack, membership
from fedtalk_ray.audits.audit import AuditFailed, audit, with_standing
from fedtalk_ray.audits.effort import FAST
from fedtalk_ray.audits.subject import Subject
from fedtalk_ray.commands import cli
from fedtalk_ray.config import parse_config, save_config
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.roster import extend_roster
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.model.pipeline import load_pipeline
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.protocol import STAGES
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import History
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import People, population_of
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.backbone import untrained_pipeline
from fedtalk_ray.training.local import LocalTrainer
from fedtalk_ray.training.phases.units import moments, set_units

CLIENTS, OUTSIDERS, ROUNDS = 8, 8, 1

PRIVATE: dict[str, Any] = {
    "aggregation": "secure",
    "privacy": {"mechanism": "skellam", "noise_multiplier": 1.3, "clip_norm": 0.5, "samples_cap": 60},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, make_shards: Callable[..., Any]) -> dict[str, Any]:
    """Sixteen people of three clips, eight of them unseen, and an untrained pipeline for them."""
    folder = tmp_path_factory.mktemp("audited")
    people = [f"p{place:02d}" for place in range(CLIENTS + OUTSIDERS)]
    clips = {name: [16, 16, 16] for name in people}
    manifest = make_shards(folder / "shards", clips, unseen=tuple(people[CLIENTS:]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = untrained_pipeline(manifest, widths=(16, 24), window=4)
        for parameter in pipeline.denoiser.parameters():
            if not parameter.any():
                parameter.data.normal_(0, 0.1)
        pipeline.register_modules(identity_encoder=IdentityEncoder(dimensions=8, widths=(8, 16)))
    pipeline.save_pretrained(folder / "pretrained")
    return {
        "shards": str(folder / "shards"),
        "pretrained": str(folder / "pretrained"),
        "phases": ["faces"],
        "rounds": ROUNDS,
        "lora_aggregation": "ffa",
        "strategy": {"name": "uniform"},
        "cohort": {"size": CLIENTS},
        "local": {"steps": 4, "batch_size": 2, "identity_steps": 1, "learning_rate": 0.02, "vary": False},
        "adapter": {"rank": 4, "alpha": 8.0, "identity_rank": 2},
    }


def run_rounds(config: TrainConfig) -> Path:
    """A whole run in this process: what the slot tells goes to the server as `actors` would carry it."""
    run, slot = Path(config.run), ClientSlot(config)
    start, clients = slot.start(), list(population_of(config, load_manifest(config.shards)))
    (run / "checkpoints").mkdir(parents=True)
    save_config(config, run / "config.yaml")
    fingerprint = config_fingerprint(config)
    save_checkpoint(run / "checkpoints", Checkpoint(0, start, {}), fingerprint)
    server = ParameterServer(str(run), config)
    if config.aggregation == "secure":
        key = SigningKey.kept_in(RunFolder(run).server_key)
        extend_roster(RunFolder(run).roster, key.public, slot.enrol(clients))
    history = History(RunFolder(run).history_file, keep=0)
    for number in range(1, config.rounds + 1):
        record: dict[str, Any] = {"round": number, "aggregation": config.aggregation}
        if config.aggregation == "plain":
            _, update = slot.fit(clients, number, server.shared(), number)
            assert update is not None
            server.apply(number, update, cohort=clients)
            record |= {"counts": {"cohort": len(clients), "trained": len(clients)}}
        else:
            plan = server.begin(number, clients, slot.backbone())
            said = slot.train(clients, server.shared(), plan, number)
            frames, counts = dict.fromkeys(said.clients, b""), {"cohort": len(clients)}
            for stage in STAGES:
                _, payload = slot.answer(stage, frames)
                collected = server.collect(stage, payload)
                frames, counts[stage] = collected.frames, collected.answered
            record |= {"counts": counts} | server.finish(number)
        history.after_round(record)
    slot.export(server.released(), config.rounds)
    return run


@pytest.fixture(scope="module")
def plain_run(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "plain"
    return run_rounds(parse_config(settings | {"run": str(run), "aggregation": "plain"}, "test"))


@pytest.fixture(scope="module")
def private_run(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "private"
    return run_rounds(parse_config(settings | PRIVATE | {"run": str(run)}, "test"))


def figures(result: dict[str, Any], attack: str) -> dict[str, dict[str, Any]]:
    (found,) = [outcome for outcome in result["outcomes"] if outcome["attack"] == attack]
    return {figure["name"]: figure for figure in found["figures"]}


def test_without_privacy_the_attacks_get_something(plain_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole fast form, through the command."""
    with pytest.raises(SystemExit) as left:
        cli.main(["audit", str(plain_run), "--fast"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    result = json.loads((plain_run / "audit" / "audit.json").read_text())
    assert [outcome["attack"] for outcome in result["outcomes"]] == available()
    assert result["mode"] == "no privacy" and result["failures"] == [] and result["claim"] is None
    assert figures(result, "canaries")["server view: epsilon at least, one run"]["value"] > 3
    clear = figures(result, "inversion")["cosine, one update in the clear"]["value"]
    assert clear > 0.5, "even a few steps find more of a face than the mean of others"
    ranks = figures(result, "reidentification")
    assert ranks["rank-1, the server alone"]["value"] > 3 / CLIENTS
    assert ranks["rank-1, the server alone"]["chance"] == pytest.approx(1 / FAST.people)
    for name in available():
        assert f"\n{name}: " in printed
    # What shows a client stays in its folder.
    own = RunFolder(plain_run).client("p00").audit
    for picture in (plain_run / "audit/membership.png", plain_run / "audit/canaries.png", own / "inversion.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (plain_run / "audit" / "inversion.png").exists()


def test_of_a_shared_backbone_one_window_tells_its_face_and_another_versions_run_is_one_line(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """The layer that takes a reference's lips has no part in the loss of a window that is told none."""
    changed = {"run": str(tmp_path / "run"), "aggregation": "plain", "shared": "backbone"}
    shared = {name: value for name, value in settings.items() if name != "lora_aggregation"}
    run = run_rounds(parse_config(shared | changed, "test"))
    clear = figures(audit(run, fast=True, only=["inversion"]), "inversion")["cosine, one update in the clear"]
    assert clear["value"] > 0.5
    released = load_pipeline(str(RunFolder(run).pipeline))
    released.denoiser.reference_embedding = None
    released.denoiser.register_to_config(reference_lips=False)
    released.save_pretrained(str(RunFolder(run).pipeline))
    with pytest.raises(RunError, match="audit it with the version that trained it") as caught:
        audit(run, fast=True, only=["inversion"])
    assert "\n" not in str(caught.value)


def test_what_paints_on_bent_references_is_audited_as_it_is_trained(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attackers bend references as the run does: what they repeat of local training, and a face out of an update."""
    pipeline, people = load_pipeline(settings["pretrained"]), load_manifest(settings["shards"])
    base = pipeline.denoiser
    set_units(base, moments(list(People(settings["shards"], people).pieces("p00", "train"))))
    base.bend_latents(4, int(base.config.latent_channels) - 2, 1)
    base.show_open_mouths()
    base.open_mouth.colours[0] = 0.5
    base.see_reference_lips()
    pipeline.save_pretrained(tmp_path / "pretrained")
    changed = {"run": str(tmp_path / "run"), "aggregation": "plain", "pretrained": str(tmp_path / "pretrained")}
    run = run_rounds(parse_config(settings | changed, "test"))
    seen: list[WindowBatch] = []
    whole = LocalTrainer.fit

    def watched(trainer: LocalTrainer, *given: Any, **more: Any) -> Any:
        shared, identity, batches = given
        batches = list(batches)
        seen.extend(batches)
        return whole(trainer, shared, identity, batches, **more)

    monkeypatch.setattr(LocalTrainer, "fit", watched)
    result = audit(run, fast=True, only=["membership", "reidentification", "identity_leakage"])
    assert not result["failures"]
    told = torch.cat([~batch.lips[:, 0, 0].isnan() for batch in seen])
    assert len(told) > 100 and told.float().mean() == pytest.approx(0.9, abs=0.05), "as many as `local.true_lips` says"
    for batch in seen:
        moved = (batch.bent - batch.reference[:, None]).abs().amax((1, 2, 3, 4)) > 1e-3
        assert batch.bent.shape == batch.latents.shape and torch.equal(moved, ~batch.reference_lips[:, 0].isnan())
    assert figures(result, "reidentification")["rank-1, the server alone"]["value"] > 3 / CLIENTS
    # Whoever leaves the bending out finds less.
    clear = cosine_of_one_update(run)
    monkeypatch.setattr(inversion, "bends_of", lambda *_: None)
    assert clear > cosine_of_one_update(run) + 0.1


def cosine_of_one_update(run: Path) -> float:
    """Of the face that is found in an update in the clear, in more steps than the fast form takes."""
    longer = replace(FAST, iterations=60)
    outcome = inversion.attack(Subject(RunFolder(run), longer), longer)
    (clear,) = [each for each in outcome.figures if each.name == "cosine, one update in the clear"]
    return clear.value


def test_with_both_promises_the_attacks_get_nothing(private_run: Path) -> None:
    result = audit(private_run, fast=True)
    assert result["mode"] == "both" and result["failures"] == []
    assert result["claim"]["rounds"] == ROUNDS
    inversion = figures(result, "inversion")
    for attacker in ("the server alone", "who knows everything else"):
        assert inversion[f"cosine, {attacker}"]["value"] < 0.4
    canaries = figures(result, "canaries")
    claim = result["claim"]["server"]
    for name in ("one run", "one run, Gaussian-like noise"):
        figure = canaries[f"server view: epsilon at least, {name}"]
        assert figure["value"] <= figure["claim"] == pytest.approx(claim, rel=0.01)


def test_a_broken_promise_is_written_down_and_ends_with_one_line(
    private_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedtalk_ray.privacy import noise

    whole = noise.skellam
    monkeypatch.setattr(noise, "skellam", lambda *arguments: whole(*arguments) // 20)
    with pytest.raises(SystemExit) as left:
        cli.main(["audit", str(private_run), "--fast", "--only", "canaries"])
    assert left.value.code == 1
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith("fedtalk: the audit failed: canaries: server view: canaries prove")
    assert "BROKEN: server view: canaries prove an epsilon of at least" in told.out
    assert json.loads((private_run / "audit" / "audit.json").read_text())["failures"]


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        (Outcome("x", "", [Figure("area", float("nan"))]), "area is nan: no finite number"),
        (Outcome("x", "", [Figure("area", float("inf"))]), "area is inf: no finite number"),
        (Outcome("x", "", [Figure("area", 1.0)], series={"scores": [1.0, float("nan")]}), "scores holds values"),
        (Outcome("x", ""), "no figure was measured"),
        (Outcome("x", "", [Figure("area", 1.0)], broken=["a promise"]), "a promise"),
    ],
)
def test_what_is_no_number_fails_and_never_passes(outcome: Outcome, says: str) -> None:
    (line,) = outcome.failures()
    assert line.startswith("x: ") and says in line
    json.dumps(outcome.as_json(), allow_nan=False)


def test_a_model_of_nans_fails_the_audit(plain_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that cannot be computed: every attack on the released model says so, and none passes."""
    monkeypatch.setattr(Subject, "loss", lambda self, vector, person: float("nan"))
    with pytest.raises(AuditFailed, match="base-calibrated loss: members holds values that are no finite numbers"):
        audit(plain_run, fast=True, only=["membership"])
    monkeypatch.setattr(Subject, "fit_from", lambda self, shared, *_: np.full_like(shared, np.nan))
    with pytest.raises(AuditFailed, match="nothing is nearest to it"):
        audit(plain_run, fast=True, only=["reidentification"])


def test_an_attack_that_cannot_be_tried_fails_and_the_others_are_written(
    plain_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RunError("no identity encoder")

    monkeypatch.setattr(identity_leakage, "attack", fails)
    with pytest.raises(AuditFailed, match="identity_leakage: could not be tried: no identity encoder"):
        audit(plain_run, fast=True, only=["canaries", "identity_leakage"])
    result = json.loads((plain_run / "audit" / "audit.json").read_text())
    assert figures(result, "canaries") and not figures(result, "identity_leakage")


def forget(run: Path) -> None:
    """What was found before, which would stand."""
    (run / "audit" / "audit.json").unlink(missing_ok=True)


@pytest.fixture
def one_more_round_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """All audits of a test look at the same one more round, which takes longer than most attacks on it."""
    made = cache(lambda path, effort: Subject(RunFolder(path), effort))
    monkeypatch.setattr(sys.modules[audit.__module__], "Subject", lambda run, effort: made(run.path, effort))


@pytest.mark.usefixtures("one_more_round_is_enough")
def test_what_other_attacks_found_stands(plain_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the same round: one more attack is added in its place, and one that is made again is replaced."""
    forget(plain_run)
    audit(plain_run, fast=True, only=["canaries"])
    result = audit(plain_run, fast=True, only=["lying_server"])
    assert "as found before, on the same round: canaries" in capsys.readouterr().out
    assert json.loads((plain_run / "audit" / "audit.json").read_text()) == result
    assert [outcome["attack"] for outcome in result["outcomes"]] == ["lying_server", "canaries"]
    assert result["effort"] is not None
    assert audit(plain_run, fast=True, only=["lying_server"])["outcomes"] == result["outcomes"]
    assert audit(plain_run, only=["charges"])["effort"] is None, "the others were quick looks"


@pytest.mark.usefixtures("one_more_round_is_enough")
def test_a_broken_promise_stands_until_its_attack_is_made_again(plain_run: Path) -> None:
    forget(plain_run)
    audit(plain_run, fast=True, only=["charges"])
    place = plain_run / "audit" / "audit.json"
    result = json.loads(place.read_text())
    result["outcomes"][0]["failures"] = ["charges: nobody paid"]
    place.write_text(json.dumps(result))
    with pytest.raises(AuditFailed, match="charges: nobody paid"):
        audit(plain_run, fast=True, only=["lying_server"])
    assert json.loads(place.read_text())["failures"] == ["charges: nobody paid"]
    assert audit(plain_run, fast=True, only=["charges"])["failures"] == []


RESULT: dict[str, Any] = {"round": 3, "effort": {"draws": 2}, "failures": ["canaries: new"]} | {
    "outcomes": [{"attack": "canaries", "knows": "x", "figures": [], "failures": ["canaries: new"]}]
}
EARLIER: dict[str, Any] = RESULT | {
    "failures": ["server_saw: old", "canaries: old"],
    "outcomes": [
        {"attack": "canaries", "knows": "x", "figures": [], "failures": ["canaries: old"]},
        {"attack": "server_saw", "knows": "x", "figures": [{"name": "area"}], "failures": ["server_saw: old"]},
        {"attack": "wire", "knows": "x", "figures": [], "failures": ["wire: an attack of an older version"]},
    ],
}


@pytest.mark.parametrize(
    ("text", "failures", "told"),
    [
        (json.dumps(EARLIER), ["server_saw: old", "canaries: new"], ""),
        (json.dumps(EARLIER | {"round": 2}), ["canaries: new"], ""),
        ("{", ["canaries: new"], "was damaged"),
        ("[]", ["canaries: new"], "was damaged"),
        (json.dumps(EARLIER | {"outcomes": [{"attack": "server_saw"}]}), ["canaries: new"], "was damaged"),
        (None, ["canaries: new"], ""),
    ],
)
def test_outcomes_of_the_same_round_alone_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, failures: list[str], told: str
) -> None:
    place = tmp_path / "audit.json"
    if text is not None:
        place.write_text(text)
    result = with_standing(RESULT, place)
    assert result["failures"] == failures
    assert [outcome["attack"] for outcome in result["outcomes"]] == [line.partition(":")[0] for line in failures]
    printed = capsys.readouterr().out
    assert told in printed and bool(printed) == bool(told)


def test_an_infinite_claim_is_written_and_told(private_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from fedtalk_ray.privacy import ledger

    monkeypatch.setattr(ledger, "epsilon", lambda rounds, delta: float("inf"))
    forget(private_run)
    result = audit(private_run, fast=True, only=["one_shot"])
    assert result["claim"]["release"] is None
    assert "epsilon infinite (release view), infinite (server view)" in capsys.readouterr().out


def test_a_leak_that_was_planted_is_seen(plain_run: Path) -> None:
    """A released model that was taught one member's face outright gains likeness where the sound run gains none."""
    audited = Subject(RunFolder(plain_run), FAST)
    outcome = identity_leakage.attack(audited, FAST)
    found = {figure.name: figure.value for figure in outcome.figures}
    assert found["likeness gained, control: taught one member's face"] > 3 * abs(
        found["likeness gained, members - outsiders"]
    )


def test_likelihood_ratios_are_deviations_above_the_shadows(plain_run: Path) -> None:
    """By hand: two people, two shadow runs, the second without b."""
    shadows = [
        membership.Shadow(frozenset(), np.zeros(1)),
        membership.Shadow(frozenset({"b"}), np.zeros(1)),
    ]
    under = [{"a": 1.0, "b": 5.0}, {"a": 3.0, "b": 100.0}]
    found = membership.likelihood_ratio({"a": 4.0, "b": 6.0}, shadows, under)
    # a: mean 2, deviation of (1, 3) about it 1; b: its one run without it gave 5.
    assert found == {"a": pytest.approx(2.0), "b": pytest.approx(1.0)}
    with pytest.raises(RunError, match="b was in every shadow run"):
        membership.likelihood_ratio({"b": 1.0}, shadows[1:], under[1:])


def test_shadow_runs_leave_everybody_out_of_half_of_them(plain_run: Path) -> None:
    from dataclasses import replace

    from fedtalk_ray.audits.shadows import train_shadows

    audited = Subject(RunFolder(plain_run), FAST)
    shadows = train_shadows(audited, replace(FAST, shadows=2, shadow_rounds=1))
    assert not shadows[0].people & shadows[1].people
    assert sorted(shadows[0].people | shadows[1].people) == sorted(audited.outsiders)
    assert not any(np.array_equal(shadow.parameters, audited.start) for shadow in shadows)


def test_members_are_those_who_took_part(plain_run: Path) -> None:
    audited = Subject(RunFolder(plain_run), FAST)
    assert len(audited.members) == FAST.people and set(audited.members) <= {f"p{n:02d}" for n in range(CLIENTS)}
    assert set(audited.outsiders) == {f"p{n:02d}" for n in range(CLIENTS, CLIENTS + OUTSIDERS)}
    assert audited.rounds == ROUNDS and not np.array_equal(audited.start, audited.released)


def test_a_folder_that_cannot_be_audited_is_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run folder"):
        audit(tmp_path)
    with pytest.raises(RunError, match="attack 'wires' is unknown; known: server_saw, charges"):
        audit(tmp_path, only=["wires"])
    config = parse_config(settings | {"run": str(tmp_path / "new"), "aggregation": "plain"}, "test")
    (tmp_path / "new").mkdir()
    save_config(config, tmp_path / "new" / "config.yaml")
    with pytest.raises(RunError, match="has no finished round yet"):
        audit(tmp_path / "new")
    virtual = parse_config(settings | {"run": str(tmp_path / "new"), "population": {"clients": 50}}, "test")
    save_config(virtual, tmp_path / "new" / "config.yaml")
    with pytest.raises(RunError, match="has virtual clients"):
        audit(tmp_path / "new")


def test_too_few_people_are_one_line(plain_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "FEWEST", 50)
    with pytest.raises(RunError, match="an audit needs 50 of them"):
        audit(plain_run, fast=True)


def test_every_attack_states_what_the_attacker_knows() -> None:
    for name in available():
        module = load_attack(name)
        assert len(module.KNOWS) > 40 and module.__doc__ and callable(module.attack)
