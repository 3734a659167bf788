"""Whoever has a token fetches the released model, and nothing else; whoever has none, nothing."""

import asyncio
from pathlib import Path

import pytest
import requests

from fedtalk_ray.coordinator import readers
from fedtalk_ray.enrolment.authority import Authority
from fedtalk_ray.enrolment.token import Token
from fedtalk_ray.runs.folder import RunFolder
from tests.unit.coordinator.conftest import Command, Standing


@pytest.fixture
def released(standing: Standing, tmp_path: Path) -> dict[str, bytes]:
    """What a run released, beside what it did not."""
    run, content = tmp_path / "run", {}
    for name in (
        "pipeline/model_index.json",
        "pipeline/unet/weights.safetensors",
        "adapters/shared/adapter.safetensors",
    ):
        content[name] = name.encode() * 1000
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content[name])
    (run / "clients").mkdir()
    (run / "clients" / "own.safetensors").write_bytes(b"private")
    standing.ask(standing.gate.release(str(run))).result()
    return content


def get(standing: Standing, path: str, code: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env, session.verify = False, str(standing.files.authority)
        return session.get(standing.address + path, headers={"Authorization": f"Bearer {code}"}, timeout=10)


def test_the_model_comes_whole_and_nothing_else(
    standing: Standing, released: dict[str, bytes], tmp_path: Path, told: Command
) -> None:
    code = standing.authority.token("museum").code()
    printed = told("fetch", standing.address, "--token", code, "--out", tmp_path / "model")
    assert printed.startswith(f"model: {tmp_path / 'model'}; it speaks by: fedtalk generate")
    found = {
        path.relative_to(tmp_path / "model").as_posix(): path.read_bytes()
        for path in (tmp_path / "model").rglob("*")
        if path.is_file()
    }
    assert found == released
    assert RunFolder(tmp_path / "model").has_model()


def test_a_token_opens_nothing_else(standing: Standing, released: dict[str, bytes]) -> None:
    standing.member("s1")
    code = standing.authority.token("museum").code()
    inside = standing.gate.served.add("shared", b"a round's parameters")
    assert get(standing, "/v1/released", code).status_code == 200
    for path in ("/v1/offer", "/v1/members", f"/v1/files/{inside.digest.hex()}"):
        assert get(standing, path, code).status_code == 401
    assert get(standing, f"/v1/released/{inside.digest.hex()}", code).status_code == 404
    assert get(standing, "/v1/released/..%2F..%2Fauthority.key", code).status_code == 404


def test_who_has_no_token_gets_nothing(standing: Standing, released: dict[str, bytes], tmp_path: Path) -> None:
    good = standing.authority.token("museum")
    other = Authority.create(tmp_path / "other", ["localhost"]).token("museum")
    over = standing.authority.token("late", days=-1)
    invite = standing.authority.invite("s1").code()
    for code in ("", "museum:", good.code()[:-4], other.code(), over.code(), invite):
        answer = get(standing, "/v1/released", code)
        assert answer.status_code == 401 and answer.headers["connection"] == "close"
        assert "authority" in answer.json()["detail"] and good.name not in answer.text
    standing.authority.revoke("museum")
    assert get(standing, "/v1/released", good.code()).status_code == 403


def test_what_is_refused_is_one_line_and_leaves_nothing(
    standing: Standing, tmp_path: Path, refused: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "ASKED_AGAIN_S", 0.0)
    token, out = standing.authority.token("museum"), tmp_path / "model"
    other = Authority.create(tmp_path / "other", ["localhost"]).token("museum")
    forged = Token("museum", token.secret, token.authority, "2099-01-01", token.grant)

    def said(code: str, address: str = standing.address) -> str:
        return refused("fetch", address, "--token", code, "--out", out)

    assert "no model is released there yet" in said(token.code())
    assert "is no whole token" in said("museum:abc")
    assert "belongs to another authority" in said(other.code())
    assert "not one that this federation's authority printed" in said(forged.code())
    assert "is no coordinator's address" in said(token.code(), "http://localhost:1")
    (tmp_path / "empty").mkdir()
    standing.ask(standing.gate.release(str(tmp_path / "empty"))).result()
    assert "a model without a file" in said(token.code())
    standing.authority.revoke("museum")
    assert "the token was revoked (HTTP 403)" in said(token.code())
    assert not out.exists() and not list(tmp_path.glob(".model*"))


def test_the_gate_is_asked_for_the_model_once_a_second(
    standing: Standing, released: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "ASKED_AGAIN_S", 60.0)
    asked = []

    async def counted() -> bytes | None:
        asked.append(1)
        return await standing.gate.released()

    held = readers.Readers(counted)
    assert asyncio.run(held.order()) == asyncio.run(held.order()) != b""
    assert len(asked) == 1
