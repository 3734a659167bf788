"""People who bring adapters that were trained elsewhere: they speak, are replaced and go without a trace."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from fedtalk_ray.config import save_config
from fedtalk_ray.runs.folder import RunFolder
from tests.served import Served, form, frames_of, until

WEIGHTS = "adapter_model.safetensors"
CONSENT = {"consent": "My adapter may be kept here."}


@pytest.fixture(scope="module")
def run(
    exported: Path, report_shards: Path, make_config: Callable, tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    """A run with a client of its own, anna."""
    folder = tmp_path_factory.mktemp("brought") / "run"
    shutil.copytree(exported, folder)
    shutil.copytree(RunFolder(exported).clients_folder, RunFolder(folder).clients_folder)
    settings = {"run": str(folder), "shards": str(report_shards), "rounds": 3, "aggregation": "plain"}
    save_config(make_config(**settings), RunFolder(folder).config_file)
    return RunFolder(folder)


@pytest.fixture
def served(run: RunFolder, tmp_path: Path) -> Iterator[Served]:
    made = Served(run.path, tmp_path / "jobs")
    yield made
    made.close()


@pytest.fixture
def trained(run: RunFolder) -> bytes:
    """Weights as personalising makes them."""
    return (run.client("anna").newest_adapter / WEIGHTS).read_bytes()


def test_who_brings_an_adapter_speaks_by_it_until_she_takes_it_away(
    served: Served, run: RunFolder, trained: bytes, tmp_path: Path
) -> None:
    def said(who: str) -> np.ndarray:
        return frames_of(served.ask("POST", "/v1/generate", files=form(), data={"identity": who}).content, tmp_path)

    def put() -> int:
        at = "/v1/identities/bea"
        return served.ask("PUT", at, files={"weights": ("any name", changed)}, data={"consent": agreed}).status_code

    changed, agreed = trained, CONSENT["consent"]
    assert put() == 204 and served.ask("GET", "/v1/identities").json() == ["anna", "bea"]
    own = run.client("bea")
    assert json.loads(own.consent.read_text())["agreed"] == CONSENT["consent"] and own.path.stat().st_mode & 0o077 == 0
    kept, given = load_file(own.newest_adapter / WEIGHTS), load_file(run.client("anna").newest_adapter / WEIGHTS)
    assert kept.keys() == given.keys() and all(torch.equal(kept[name], given[name]) for name in kept)
    first = said("bea")
    assert (first == said("anna")).all()
    # Another one in its place acts at once.
    agreed = "It may be kept until May."
    changed = save({name: 3 * value for name, value in given.items()})
    assert put() == 204 and (said("bea") != first).any()
    assert json.loads(own.consent.read_text())["agreed"] == agreed
    assert served.ask("DELETE", "/v1/identities/bea").status_code == 204 and not own.path.exists()
    assert served.ask("DELETE", "/v1/identities/bea").status_code == 404
    assert served.ask("POST", "/v1/generate", files=form(), data={"identity": "bea"}).status_code == 404
    assert served.ask("GET", "/v1/identities").json() == ["anna"]
    until(lambda: not list(served.folder.iterdir()))


def test_videos_that_show_her_go_with_her(served: Served, run: RunFolder, trained: bytes) -> None:
    """As the page makes them, before and after."""
    served.ask("PUT", "/v1/identities/bea", files={"weights": ("w", trained)}, data=CONSENT)
    name = served.ask("POST", "/v1/jobs", files=form(), data={"identity": "bea"}).json()["job"]
    until(lambda: served.ask("GET", f"/v1/jobs/{name}").json()["state"] == "done")
    served.speaking.shown["bea"] = [served.speaking.queue.get(name)]
    assert served.ask("DELETE", "/v1/identities/bea").status_code == 204
    assert served.ask("GET", f"/v1/jobs/{name}/video").status_code == 404 and not list(served.folder.iterdir())


def test_who_asks_again_after_a_deletion_that_was_broken_off_leaves_nothing(served: Served, run: RunFolder) -> None:
    left = run.clients_folder / ".gone-0123"
    left.mkdir()
    (left / "clip01.mp4").write_bytes(b"hers")
    assert served.ask("DELETE", "/v1/identities/bea").status_code == 404 and not left.exists()


def spoiled(how: str, trained: bytes, tmp_path: Path) -> bytes:
    (tmp_path / "given").write_bytes(trained)
    weights = load_file(tmp_path / "given")
    first = min(weights)
    if how == "not finite":
        weights[first][0, 0] = torch.nan
    elif how == "another rank":
        weights[first] = torch.cat([weights[first]] * 2)
    elif how == "one too few":
        del weights[first]
    elif how == "one too many":
        weights["base_model.model.more.lora_A.weight"] = torch.zeros(2, 2)
    save_file(weights, tmp_path / "spoiled")
    return (tmp_path / "spoiled").read_bytes()


BAD = {
    "not finite": "no numbers",
    "another rank": "does not fit this backbone: size mismatch",
    "one too few": "does not fit this backbone: missing",
    "one too many": "does not fit this backbone: unexpected",
}


@pytest.mark.parametrize("how", [*BAD, "no safetensors"])
def test_what_is_no_adapter_of_this_model_is_refused_and_leaves_nothing(
    served: Served, run: RunFolder, trained: bytes, tmp_path: Path, how: str
) -> None:
    given = b"\x80\x04cos\nsystem\n" if how == "no safetensors" else spoiled(how, trained, tmp_path)
    answer = served.ask("PUT", "/v1/identities/bea", files={"weights": ("w", given)}, data=CONSENT)
    assert answer.status_code == 400 and BAD.get(how, "weights is damaged") in answer.json()["detail"], answer.text
    assert str(served.folder) not in answer.text and not run.client("bea").path.exists()
    until(lambda: not list(served.folder.iterdir()))


def test_whose_name_is_taken_or_none_and_who_agrees_to_nothing_is_refused(
    served: Served, run: RunFolder, trained: bytes
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
    assert RunFolder(run.path).clients() == ["anna"] and run.client("anna").newest_adapter.is_dir()
