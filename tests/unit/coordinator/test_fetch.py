"""Whoever has a token fetches the released model, and nothing else; whoever has none, nothing."""

import asyncio
from pathlib import Path

import pytest
import requests

from fedtalk_ray.commands.cli import main
from fedtalk_ray.coordinator import readers
from fedtalk_ray.coordinator.gate import GateAway
from fedtalk_ray.enrolment.authority import Authority
from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.enrolment.token import Token
from fedtalk_ray.outputs import OutputError
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.sites import connection
from fedtalk_ray.sites.connection import ConnectionRefused
from fedtalk_ray.sites.fetching import fetch_released
from tests.unit.coordinator.conftest import Standing, refused


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
    standing: Standing, released: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = standing.authority.token("museum").code()
    with pytest.raises(SystemExit) as ended:
        main(["fetch", standing.address, "--token", code, "--out", str(tmp_path / "model")])
    assert not ended.value.code
    assert capsys.readouterr().out.startswith(f"model: {tmp_path / 'model'}; it speaks by: fedtalk generate")
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
    standing: Standing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token, out = standing.authority.token("museum"), tmp_path / "model"
    other = Authority.create(tmp_path / "other", ["localhost"]).token("museum")
    forged = Token("museum", token.secret, token.authority, "2099-01-01", token.grant)

    def said(code: str, address: str = standing.address) -> str:
        return refused(["fetch", address, "--token", code, "--out", str(out)], capsys)

    assert "no model is released there yet" in said(token.code())
    assert "is no whole token" in said("museum:abc")
    assert "belongs to another authority" in said(other.code())
    assert "not one that this federation's authority printed" in said(forged.code())
    assert "is no coordinator's address" in said(token.code(), "http://localhost:1")
    standing.authority.revoke("museum")
    assert "the token was revoked (HTTP 403)" in said(token.code())
    assert not out.exists() and not list(tmp_path.glob(".model*"))


def test_a_folder_in_use_stays_as_it_is(standing: Standing, released: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        fetch_released(standing.address, standing.authority.token("museum"), tmp_path / "model")
    assert (tmp_path / "model" / "mine").read_text() == "mine"


def test_a_refusal_is_not_tried_again(standing: Standing, tmp_path: Path) -> None:
    token = standing.authority.token("museum")
    standing.authority.revoke("museum")
    with pytest.raises(ConnectionRefused):
        fetch_released(standing.address, token, tmp_path / "model")


def test_a_token_asks_no_more_often_than_a_member_and_the_gate_once_a_second(
    standing: Standing, released: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    honest = standing.gate.released
    monkeypatch.setattr("fedtalk_ray.coordinator.quota.MOST_A_MINUTE", 20)
    monkeypatch.setattr(readers, "ASKED_AGAIN_S", 60.0)
    code, other = (standing.authority.token(name).code() for name in ("museum", "archive"))

    async def counted() -> bytes | None:
        asked.append(1)
        return await honest()

    held = readers.Readers(counted)
    assert asyncio.run(held.order()) == asyncio.run(held.order()) != b""
    assert len(asked) == 1
    # Within one minute by the door's clock; should it turn over on the way, a second pass is within the next.
    codes = [get(standing, "/v1/released", code).status_code for _ in range(42)]
    assert 429 in codes and codes[0] == 200
    assert get(standing, "/v1/released", other).status_code == 200


def test_a_release_without_a_file_is_no_model(standing: Standing, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    standing.ask(standing.gate.release(str(tmp_path / "empty"))).result()
    with pytest.raises(EnrolmentError, match="a model without a file"):
        fetch_released(standing.address, standing.authority.token("museum"), tmp_path / "model")


def test_an_address_that_the_certificate_does_not_name_is_told_at_once(standing: Standing, tmp_path: Path) -> None:
    address = standing.address.replace("localhost", "127.0.0.1")
    with pytest.raises(EnrolmentError, match="has no certificate of its authority"):
        fetch_released(address, standing.authority.token("museum"), tmp_path / "model")


def test_who_does_not_answer_is_not_waited_for_without_end(
    standing: Standing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> bytes | None:
        raise GateAway

    monkeypatch.setattr(connection, "PATIENCE_S", 1.0)
    monkeypatch.setattr(standing.gate, "released", away)
    monkeypatch.setattr(readers.Readers, "order", lambda self: away())
    with pytest.raises(EnrolmentError, match="did not answer for 1 s"):
        fetch_released(standing.address, standing.authority.token("museum"), tmp_path / "model")
