"""People who bring adapters that were trained elsewhere: they speak, are replaced and go without a trace."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save

from fedtalk_ray.runs.folder import RunFolder
from tests.served import Served, form, frames_of, until

WEIGHTS = "adapter_model.safetensors"
CONSENT = {"consent": "My adapter may be kept here."}


@pytest.fixture
def served(own_run: RunFolder, tmp_path: Path) -> Iterator[Served]:
    made = Served(own_run.path, tmp_path / "jobs")
    yield made
    made.close()


@pytest.fixture
def trained(own_run: RunFolder) -> bytes:
    """Weights as personalising makes them."""
    return (own_run.client("anna").newest_adapter / WEIGHTS).read_bytes()


def test_who_brings_an_adapter_speaks_by_it_until_she_takes_it_away(
    served: Served, own_run: RunFolder, trained: bytes, tmp_path: Path
) -> None:
    def said(who: str) -> np.ndarray:
        return frames_of(served.ask("POST", "/v1/generate", files=form(), data={"identity": who}).content, tmp_path)

    def put() -> int:
        return served.ask("PUT", "/v1/identities/bea", files={"weights": ("w", changed)}, data=CONSENT).status_code

    changed = trained
    assert put() == 204 and served.ask("GET", "/v1/identities").json() == ["anna", "bea"]
    own = own_run.client("bea")
    assert json.loads(own.consent.read_text())["agreed"] == CONSENT["consent"] and own.path.stat().st_mode & 0o077 == 0
    kept, given = load_file(own.newest_adapter / WEIGHTS), load_file(own_run.client("anna").newest_adapter / WEIGHTS)
    assert kept.keys() == given.keys() and all(torch.equal(kept[name], given[name]) for name in kept)
    first = said("bea")
    assert (first == said("anna")).all()
    changed = save({name: 3 * value for name, value in given.items()})
    assert put() == 204 and (said("bea") != first).any()
    assert served.ask("DELETE", "/v1/identities/bea").status_code == 204 and not own.path.exists()
    assert served.ask("DELETE", "/v1/identities/bea").status_code == 404
    assert served.ask("POST", "/v1/generate", files=form(), data={"identity": "bea"}).status_code == 404
    assert served.ask("GET", "/v1/identities").json() == ["anna"]
    until(lambda: not list(served.folder.iterdir()))


def test_videos_that_show_her_go_with_her(served: Served, own_run: RunFolder, trained: bytes) -> None:
    """As the page makes them, before and after."""
    served.ask("PUT", "/v1/identities/bea", files={"weights": ("w", trained)}, data=CONSENT)
    name = served.ask("POST", "/v1/jobs", files=form(), data={"identity": "bea"}).json()["job"]
    until(lambda: served.ask("GET", f"/v1/jobs/{name}").json()["state"] == "done")
    served.speaking.shown["bea"] = [served.speaking.queue.get(name)]
    assert served.ask("DELETE", "/v1/identities/bea").status_code == 204
    assert served.ask("GET", f"/v1/jobs/{name}/video").status_code == 404 and not list(served.folder.iterdir())


def test_what_is_no_adapter_of_this_model_is_refused_and_leaves_nothing(
    served: Served, own_run: RunFolder, trained: bytes
) -> None:
    weights = load(trained)
    first = min(weights)
    for given, why in (
        (save(weights | {first: torch.full_like(weights[first], torch.nan)}), "no numbers"),
        (save(weights | {first: torch.cat([weights[first]] * 2)}), "does not fit this backbone: size mismatch"),
        (save({name: value for name, value in weights.items() if name != first}), "backbone: missing"),
        (save(weights | {"base_model.model.more.lora_A.weight": torch.zeros(2, 2)}), "backbone: unexpected"),
        (b"\x80\x04cos\nsystem\n", "weights is damaged"),
    ):
        answer = served.ask("PUT", "/v1/identities/bea", files={"weights": ("w", given)}, data=CONSENT)
        assert answer.status_code == 400 and why in answer.json()["detail"], answer.text
        assert str(served.folder) not in answer.text and not own_run.client("bea").path.exists()
        until(lambda: not list(served.folder.iterdir()))


def test_whose_name_is_taken_or_none_and_who_agrees_to_nothing_is_refused(
    served: Served, own_run: RunFolder, trained: bytes
) -> None:
    files = {"weights": ("w", trained)}
    for method, name, data, code, why in (
        ("PUT", "anna", CONSENT, 400, "anna is a client of the run"),
        ("DELETE", "anna", {}, 400, "anna is a client of the run"),
        ("PUT", "..%2Fbea", CONSENT, 404, "Not Found"),
        ("PUT", "Bea!", CONSENT, 400, "cannot be a folder's"),
        ("PUT", "bea", {}, 422, "consent: "),
        ("PUT", "bea", {"consent": ""}, 422, "consent: "),
    ):
        given = {"files": files, "data": data} if method == "PUT" else {}
        answer = served.ask(method, f"/v1/identities/{name}", **given)
        assert answer.status_code == code and why in answer.json()["detail"], (name, answer.text)
    assert served.ask("PUT", "/v1/identities/bea", token=None, files=files, data=CONSENT).status_code == 401
    assert RunFolder(own_run.path).clients() == ["anna"] and own_run.client("anna").newest_adapter.is_dir()
