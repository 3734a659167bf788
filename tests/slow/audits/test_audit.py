"""`fedtalk audit` on small runs, made by the real slot and server without Ray."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.audits.attack import Figure, Outcome
from fedtalk_ray.audits.attacks import available, identity_leakage, membership
from fedtalk_ray.audits.audit import AuditFailed, audit, with_standing
from fedtalk_ray.audits.effort import FAST
from fedtalk_ray.audits.shadows import train_shadows
from fedtalk_ray.audits.subject import Subject
from fedtalk_ray.commands import cli
from fedtalk_ray.config import parse_config, save_config
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import History
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import population_of
from fedtalk_ray.training.backbone import untrained_pipeline

CLIENTS, OUTSIDERS = 8, 8


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
        "rounds": 1,
        "lora_aggregation": "ffa",
        "strategy": {"name": "uniform"},
        "cohort": {"size": CLIENTS},
        "local": {"steps": 4, "batch_size": 2, "identity_steps": 1, "learning_rate": 0.02, "vary": False},
        "adapter": {"rank": 4, "alpha": 8.0, "identity_rank": 2},
    }


@pytest.fixture(scope="module")
def plain_run(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run in this process: what the slot tells goes to the server as `actors` would carry it."""
    where = str(tmp_path_factory.mktemp("runs") / "plain")
    config = parse_config(settings | {"run": where, "aggregation": "plain"}, "test")
    run, slot = Path(config.run), ClientSlot(config)
    start, clients = slot.start(), list(population_of(config, load_manifest(config.shards)))
    (run / "checkpoints").mkdir(parents=True)
    save_config(config, run / "config.yaml")
    fingerprint = config_fingerprint(config)
    save_checkpoint(run / "checkpoints", Checkpoint(0, start, {}), fingerprint)
    server = ParameterServer(str(run), config)
    _, update = slot.fit(clients, 1, server.shared(), 1)
    assert update is not None
    server.apply(1, update, cohort=clients)
    counts = {"cohort": len(clients), "trained": len(clients)}
    History(RunFolder(run).history_file, keep=0).after_round({"round": 1, "aggregation": "plain", "counts": counts})
    slot.export(server.released(), config.rounds)
    return run


def figures(result: dict[str, Any], attack: str) -> dict[str, dict[str, Any]]:
    (found,) = [outcome for outcome in result["outcomes"] if outcome["attack"] == attack]
    return {figure["name"]: figure for figure in found["figures"]}


def test_without_privacy_the_attacks_get_something(plain_run: Path) -> None:
    """The whole fast form, through the command."""
    with pytest.raises(SystemExit) as left:
        cli.main(["audit", str(plain_run), "--fast"])
    assert left.value.code == 0
    result = json.loads((plain_run / "audit" / "audit.json").read_text())
    assert [outcome["attack"] for outcome in result["outcomes"]] == available()
    assert result["mode"] == "no privacy" and result["failures"] == [] and result["claim"] is None
    assert figures(result, "canaries")["server view: epsilon at least, one run"]["value"] > 3
    clear = figures(result, "inversion")["cosine, one update in the clear"]["value"]
    assert clear > 0.5, "even a few steps find more of a face than the mean of others"
    ranks = figures(result, "reidentification")
    assert ranks["rank-1, the server alone"]["value"] > 3 / CLIENTS
    assert ranks["rank-1, the server alone"]["chance"] == pytest.approx(1 / FAST.people)
    # A released model that was taught one member's face outright gains likeness where the sound run gains none.
    likeness = figures(result, "identity_leakage")
    taught = likeness["likeness gained, control: taught one member's face"]["value"]
    assert taught > 3 * abs(likeness["likeness gained, members - outsiders"]["value"])
    # What shows a client stays in its folder.
    assert (RunFolder(plain_run).client("p00").audit / "inversion.png").exists()
    assert not (plain_run / "audit" / "inversion.png").exists()


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        (Outcome("x", "", [Figure("area", float("nan"))]), "area is nan: no finite number"),
        (Outcome("x", "", [Figure("area", 1.0)], series={"scores": [1.0, float("nan")]}), "scores holds values"),
        (Outcome("x", ""), "no figure was measured"),
        (Outcome("x", "", [Figure("area", 1.0)], broken=["a promise"]), "a promise"),
    ],
)
def test_what_is_no_number_fails_and_never_passes(outcome: Outcome, says: str) -> None:
    (line,) = outcome.failures()
    assert line.startswith("x: ") and says in line
    json.dumps(outcome.as_json(), allow_nan=False)


def test_a_model_of_nans_fails_the_audit(
    plain_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores that cannot be computed: every attack on the released model says so, and none passes."""
    monkeypatch.setattr(Subject, "loss", lambda self, vector, person: float("nan"))
    with pytest.raises(AuditFailed, match="base-calibrated loss: members holds values that are no finite numbers"):
        audit(plain_run, fast=True, only=["membership"])

    # One that cannot be tried fails too, and the others are written.
    def fails(*_: Any) -> None:
        raise RunError("no identity encoder")

    monkeypatch.setattr(identity_leakage, "attack", fails)
    with pytest.raises(SystemExit) as left:
        cli.main(["audit", str(plain_run), "--fast", "--only", "one_shot", "--only", "identity_leakage"])
    assert left.value.code == 1
    assert "identity_leakage: could not be tried: no identity encoder" in capsys.readouterr().err.splitlines()[-1]
    result = json.loads((plain_run / "audit" / "audit.json").read_text())
    assert figures(result, "one_shot") and not figures(result, "identity_leakage")


@pytest.fixture(scope="module", autouse=True)
def one_more_round_is_enough() -> Iterator[None]:
    """All audits of a run look at the same one more round, which takes longer than most attacks on it."""
    made = cache(lambda path, effort: Subject(RunFolder(path), effort))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[audit.__module__], "Subject", lambda run, effort: made(run.path, effort))
        yield


def test_outcomes_of_the_same_round_alone_stand(tmp_path: Path) -> None:
    def result(number: int, **failed: str) -> dict[str, Any]:
        lines = {attack: f"{attack}: {when}" for attack, when in failed.items()}
        outcomes = [{"attack": name, "knows": "", "figures": [], "failures": [said]} for name, said in lines.items()]
        return {"round": number, "effort": {"draws": 2}, "failures": list(lines.values()), "outcomes": outcomes}

    place, new = tmp_path / "audit.json", result(3, canaries="new")
    assert with_standing(new, place)["failures"] == ["canaries: new"]
    for text, failures in (
        (json.dumps(result(3, server_saw="old", canaries="old")), ["server_saw: old", "canaries: new"]),
        (json.dumps(result(2, server_saw="old")), ["canaries: new"]),
        ("{", ["canaries: new"]),
    ):
        place.write_text(text)
        found = with_standing(new, place)
        assert found["failures"] == failures and len(found["outcomes"]) == len(failures)


def test_likelihood_ratios_are_deviations_above_the_shadows() -> None:
    """By hand: two people, two shadow runs, the second without b."""
    shadows = [membership.Shadow(frozenset(who), np.zeros(1)) for who in ("", "b")]
    under = [{"a": 1.0, "b": 5.0}, {"a": 3.0, "b": 100.0}]
    found = membership.likelihood_ratio({"a": 4.0, "b": 6.0}, shadows, under)
    # a: mean 2, deviation of (1, 3) about it 1; b: its one run without it gave 5.
    assert found == {"a": pytest.approx(2.0), "b": pytest.approx(1.0)}
    with pytest.raises(RunError, match="b was in every shadow run"):
        membership.likelihood_ratio({"b": 1.0}, shadows[1:], under[1:])


@pytest.mark.nightly
def test_shadow_runs_leave_everybody_out_of_half_of_them(plain_run: Path) -> None:
    audited = Subject(RunFolder(plain_run), FAST)
    shadows = train_shadows(audited, replace(FAST, shadows=2, shadow_rounds=1))
    assert not shadows[0].people & shadows[1].people
    assert sorted(shadows[0].people | shadows[1].people) == sorted(audited.outsiders)
    assert not any(np.array_equal(shadow.parameters, audited.start) for shadow in shadows)


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
