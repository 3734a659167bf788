"""The coordinator's door: who gets in, what it costs to knock, and that nothing is counted twice."""

import hashlib
import socket
import ssl
import threading
import time
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest
import requests

from fedtalk_ray.coordinator.gate import SITES_ASK, Gate, GateAway
from fedtalk_ray.enrolment.authority import Authority
from fedtalk_ray.enrolment.caller import COUNT, EPOCH, signed_headers
from fedtalk_ray.enrolment.invite import Invite, request_of
from fedtalk_ray.enrolment.membership import EnrolmentError, Member, seal_membership
from fedtalk_ray.messages import Order, Reply
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.wire import decode, encode
from fedtalk_ray.sites.connection import Connection, ConnectionRefused, fetch_authority
from tests.unit.coordinator.conftest import Standing


def raw(standing: Standing, method: str, path: str, **how: Any) -> requests.Response:
    return requests.request(method, standing.address + path, verify=str(standing.files.authority), timeout=10, **how)


def headers(standing: Standing, name: str, count: int, method: str, path: str, body: bytes = b"") -> dict[str, str]:
    epoch, digest = standing.gate.callers.epoch, hashlib.sha256(body).digest()
    return signed_headers(standing.keys[name], name, epoch, count, method, path, digest)


def test_a_round_trip(standing: Standing) -> None:
    """Two sites train and answer; what they reply arrives as it was sent, and by name."""
    for name in ("s1", "s2"):
        standing.member(name)
    shared = np.arange(5, dtype=np.float32)
    trained = standing.ask(standing.gate.call("train", ["s1", "s2"], shared, standing.plan(), enough=None))
    for name in ("s1", "s2"):
        found = standing.line(name).post("/v1/next", b"")
        assert found is not None
        order = decode(Order, found)
        assert (order.exchange, order.stage, order.frame) == (1, "train", standing.plan())
        (part,) = order.parts
        assert part.digest == hashlib.sha256(shared.tobytes()).digest() and part.size == shared.nbytes
        standing.line(name).post("/v1/replies/1/train", encode(Reply("" if name == "s1" else "old round", b"")))
    answers = trained.result(10)
    assert (answers.clients, answers.refused) == (("s1",), {"old round": 1})

    asked = standing.ask(standing.gate.call("answer", "share", {"s1": b"frame for s1"}))
    found = standing.line("s1").post("/v1/next", b"")
    assert found is not None and decode(Order, found).frame == b"frame for s1"
    standing.line("s1").post("/v1/replies/1/share", encode(Reply("", b"sealed")))
    answers, payload = asked.result(10)
    assert answers.clients == ("s1",) and payload[0].tobytes() == b"sealed"


def test_who_is_late_is_counted_and_not_waited_for(standing: Standing) -> None:
    standing.member("s1")
    standing.gate._late_after = 0.2
    asked = standing.ask(standing.gate.call("train", ["s1"], np.zeros(1, np.float32), standing.plan()))
    answers = asked.result(10)
    assert answers.clients == () and answers.refused == {"late": 1}
    with pytest.raises(ConnectionRefused, match="not asked"):
        standing.line("s1").post("/v1/replies/1/train", encode(Reply("", b"")))


def test_a_second_reply_with_other_bytes_is_refused_and_the_same_one_changes_nothing(standing: Standing) -> None:
    for name in ("s1", "s2"):
        standing.member(name)
    asked = standing.ask(standing.gate.call("train", ["s1", "s2"], np.zeros(1, np.float32), standing.plan()))
    line = standing.line("s1")
    line.post("/v1/next", b"")
    for _ in range(2):
        line.post("/v1/replies/1/train", encode(Reply("", b"")))
    with pytest.raises(ConnectionRefused, match="another reply") as refused:
        line.post("/v1/replies/1/train", encode(Reply("old round", b"")))
    assert refused.value.status == 409
    standing.line("s2").post("/v1/replies/1/train", encode(Reply("", b"")))
    assert asked.result(10).clients == ("s1", "s2")


def test_strangers_learn_nothing_and_move_nothing(standing: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    standing.member("s1")
    stranger = SigningKey.generate()
    assert standing.line("s1").get("/v1/members"), "by which the door knows the epoch"
    # They are nothing to the gate: where doors are apart from it, each request would be a call to its one process.
    for name in SITES_ASK:
        monkeypatch.setattr(Gate, name, None)
    asks = ("GET members", "GET offer", f"GET files/{'0' * 64}", "POST next", "POST replies/1/train")
    for name in ("s9", "s1", "../s1"):
        for method, path in (each.replace(" ", " /v1/").split() for each in asks):
            epoch, digest = standing.gate.callers.epoch, hashlib.sha256(b"x").digest()
            signed = signed_headers(stranger, name, epoch, 1, method, path, digest)
            assert raw(standing, method, path, data=b"x", headers=signed).status_code == 401
            assert raw(standing, method, path, data=b"x").status_code == 401
    # Whatever was asked, who is no member keeps no connection open.
    for path in ("/", "/v1/members", "/v1/authority", "/v1/requests"):
        assert raw(standing, "POST", path, data=b"x").headers["connection"] == "close"
    monkeypatch.undo()
    # Nobody was locked out by it.
    assert standing.line("s1").get("/v1/members") == standing.files.signed_members()


def test_who_was_revoked_or_whose_time_is_over_is_turned_away(standing: Standing) -> None:
    for name in ("s1", "s2"):
        standing.member(name)
    standing.authority.revoke("s1")
    with pytest.raises(ConnectionRefused, match="revoked") as refused:
        standing.line("s1").get("/v1/offer")
    assert refused.value.status == 403
    # Whose time is over is turned away by its date, though the list still has it.
    key, gone = standing.keys["s2"], (date.today() - timedelta(days=1)).isoformat()
    found = standing.authority.members()
    over = replace(found, version=found.version + 1, members=(Member("s2", key.public, gone),))
    secret = SigningKey.read_from(standing.files.folder.parent / "authority.key")
    standing.files.members.write_bytes(seal_membership(secret, over))
    with pytest.raises(ConnectionRefused, match=f"ran out on {gone}"):
        standing.line("s2").get("/v1/offer")


def test_a_recorded_request_is_refused(standing: Standing) -> None:
    standing.member("s1")
    signed = headers(standing, "s1", 1, "GET", "/v1/members")
    assert raw(standing, "GET", "/v1/members", headers=signed).status_code == 200
    again = raw(standing, "GET", "/v1/members", headers=signed)
    assert again.status_code == 401 and again.headers[COUNT] == "1" and EPOCH in again.headers
    # How often a member called, nobody else is told.
    unsigned = signed | {"Fedtalk-Signature": "00" * 64}
    assert COUNT not in raw(standing, "GET", "/v1/members", headers=unsigned).headers
    # A site that starts anew knows neither its last count nor the epoch, and goes on.
    assert standing.line("s1").get("/v1/members")
    # Nor does it open another path, another method or another body.
    signed = headers(standing, "s1", 50, "GET", "/v1/members")
    assert raw(standing, "GET", "/v1/offer", headers=signed).status_code == 401
    assert raw(standing, "POST", "/v1/next", headers=signed).status_code == 401
    asked = standing.ask(standing.gate.call("train", ["s1"], np.zeros(1, np.float32), standing.plan()))
    assert standing.line("s1").post("/v1/next", b"")
    signed = headers(standing, "s1", 99, "POST", "/v1/replies/1/train", b"one")
    refused = raw(standing, "POST", "/v1/replies/1/train", headers=signed, data=b"two")
    assert refused.status_code == 400 and "not the one that was signed" in refused.text
    standing.line("s1").post("/v1/replies/1/train", encode(Reply("", b"")))
    assert asked.result(10).clients == ("s1",), "the refused one was no reply"


def test_bodies_are_bounded_before_they_are_read(standing: Standing) -> None:
    """A member that announces a gibibyte is answered before it has sent any of it."""
    standing.member("s1")
    asked = standing.ask(standing.gate.call("train", ["s1"], np.zeros(1, np.float32), standing.plan()))
    assert standing.line("s1").post("/v1/next", b"")
    for count, length in enumerate((str(1 << 30), "100000", "-1", "x", None), 100):
        assert announced(standing, "/v1/replies/1/train", length, count) in (b"411", b"413", b"400"), length
    standing.line("s1").post("/v1/replies/1/train", encode(Reply("", b"")))
    assert asked.result(10).clients == ("s1",)
    # Of what is not asked nothing is read either.
    assert announced(standing, "/v1/replies/1/share", "100", 200) == b"410"


def announced(standing: Standing, path: str, length: str | None, count: int) -> bytes:
    """The status of the answer to a body of s1's of which no byte is sent."""
    signed = headers(standing, "s1", count, "POST", path, b"")
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in signed.items())]
    lines += ["Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}", "", ""]
    context = ssl.create_default_context(cafile=str(standing.files.authority))
    with (
        socket.create_connection(("127.0.0.1", standing.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as line,
    ):
        line.sendall("\r\n".join(lines).encode())
        return line.recv(12).split()[1]


def test_requests_for_membership_are_kept_and_garbage_is_not(standing: Standing) -> None:
    invite, key = standing.authority.invite("s1"), SigningKey.generate()
    assert raw(standing, "POST", "/v1/requests", data=request_of(invite, key)).status_code == 202
    assert raw(standing, "POST", "/v1/requests", data=b"garbage").status_code == 400
    assert raw(standing, "POST", "/v1/requests", data=bytes(10_000)).status_code == 413
    # Nor are those of who was not invited, or too long ago: they would fill the box, and keep others out.
    stranger = Invite.new("s2", b"certificate", "2999-12-31", SigningKey.generate())
    late = standing.authority.invite("s3", days=-1)
    for asks, said in ((stranger, "no code of this federation's authority"), (late, "ran out on")):
        answer = raw(standing, "POST", "/v1/requests", data=request_of(asks, key))
        assert answer.status_code == 400 and said in answer.json()["detail"]
    assert standing.files.waiting() == [request_of(invite, key)]
    standing.authority.sign(standing.files.waiting())
    # A member's own is not kept again, and signing again changes nothing.
    assert raw(standing, "POST", "/v1/requests", data=request_of(invite, key)).status_code == 202


def test_a_file_is_fetched_by_its_hash_and_goes_on_where_it_broke_off(standing: Standing, tmp_path: Any) -> None:
    standing.member("s1")
    content = bytes(range(256)) * 5000
    part = standing.gate.served.add("file.json", content)
    place = tmp_path / "there" / "file.json"
    place.parent.mkdir()
    place.with_name("file.json.part").write_bytes(content[:1000])
    standing.line("s1").fetch(part, place)
    assert place.read_bytes() == content and not place.with_name("file.json.part").exists()
    # What is not what was named is not kept.
    (standing.gate.served._folder / part.digest.hex()).write_bytes(content[::-1])
    with pytest.raises(EnrolmentError, match="not the one it named"):
        standing.line("s1").fetch(part, tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists() and not (tmp_path / "other.json.part").exists()
    with pytest.raises(ConnectionRefused, match="no such file"):
        standing.line("s1").get("/v1/files/" + "0" * 64)
    with pytest.raises(ConnectionRefused):
        standing.line("s1").get("/v1/files/..%2f..%2fauthority.json")


def test_a_coordinator_of_another_authority_is_not_spoken_to(standing: Standing, tmp_path: Any) -> None:
    another = Authority.create(tmp_path / "another", ["localhost"])
    with pytest.raises(EnrolmentError, match="belongs to another authority"):
        fetch_authority(standing.address, another.invite("s1"))
    pem = fetch_authority(standing.address, standing.authority.invite("s1"))
    assert pem == standing.files.authority.read_bytes()
    # And a site that knows its authority speaks to nobody else: it goes on trying, and says so.
    heard: list[str] = []
    key = standing.member("s1")
    line = Connection(standing.address, another.coordinator.authority, "s1", key, heard.append, 0.1)
    threading.Thread(target=lambda: line.get("/v1/members"), daemon=True).start()
    deadline = time.monotonic() + 20
    while not heard and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "certificate verify failed" in heard[0]


def test_no_answer_is_longer_than_a_site_takes(
    standing: Standing, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing.member("s1")
    part = standing.gate.served.add("file.json", bytes(1000))
    with pytest.raises(EnrolmentError, match="longer than named"):
        standing.line("s1").fetch(replace(part, size=999), tmp_path / "file.json")
    assert not (tmp_path / "file.json").exists()
    monkeypatch.setattr("fedtalk_ray.sites.connection.LARGEST_ANSWER", 10)
    with pytest.raises(EnrolmentError, match="more than 10 bytes at once"):
        standing.line("s1").get("/v1/members")


def test_who_comes_is_heard_of_at_once(standing: Standing) -> None:
    """A round that waits for sites begins when the last one calls, not at its next look."""
    for name in ("s1", "s2"):
        standing.member(name)
    standing.line("s1").get("/v1/offer")
    began = time.monotonic()
    waits = standing.ask(standing.gate.call("on_line", ["s1", "s2"], 2, 30.0))
    standing.turn()
    assert not waits.done()
    standing.line("s2").get("/v1/offer")
    assert waits.result(10) == ["s1", "s2"] and time.monotonic() - began < 3


def test_of_a_sites_questions_for_its_next_order_one_waits(standing: Standing) -> None:
    """Whoever asks and goes away, again and again, has the gate hold one of its questions."""
    standing.member("s1")
    first, second = (standing.ask(standing.gate.next_order("s1")) for _ in range(2))
    assert first.result(5) is None and not second.done() and len(standing.gate._waiting) == 1
    asked = standing.ask(standing.gate.call("train", ["s1"], np.zeros(1, np.float32), standing.plan()))
    order = second.result(5)
    assert decode(Order, order).stage == "train" and not standing.gate._waiting
    standing.line("s1").post("/v1/replies/1/train", encode(Reply("", b"")))
    assert asked.result(10).clients == ("s1",)


def test_where_the_gate_is_away_it_is_tried_again(standing: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    standing.member("s1")

    async def gone(self: Gate, called: object) -> None:
        raise GateAway

    monkeypatch.setattr(Gate, "hear", gone)
    answer = raw(standing, "GET", "/v1/members", headers=headers(standing, "s1", 1, "GET", "/v1/members"))
    assert (answer.status_code, answer.json()) == (503, {"detail": "the coordinator is away; try again"})


def test_an_older_list_lets_nobody_back_in(standing: Standing) -> None:
    standing.member("s1")
    older = standing.files.signed_members()
    standing.authority.revoke("s1")
    for _ in range(2):
        with pytest.raises(ConnectionRefused, match="revoked"):
            standing.line("s1").get("/v1/offer")
        standing.files.members.write_bytes(older)


def test_a_list_that_is_half_copied_is_not_handed_on(standing: Standing) -> None:
    standing.member("s1")
    whole = standing.files.signed_members()
    # The door and the gate look for themselves.
    assert standing.line("s1").get("/v1/members") == whole == standing.ask(standing.gate.newest_members()).result(5)
    standing.files.members.write_bytes(whole[:40])
    assert standing.line("s1").get("/v1/members") == whole
    # Some programs remove the old file first.
    standing.files.members.unlink()
    assert standing.line("s1").get("/v1/members") == whole
    assert standing.ask(standing.gate.newest_members()).result(5) == whole
    standing.member("s2")
    assert standing.line("s2").get("/v1/members") == standing.files.signed_members() != whole


def test_a_member_that_calls_all_the_time_is_slowed_and_nobody_else(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedtalk_ray.coordinator.quota.MOST_A_MINUTE", 3)
    monkeypatch.setattr("fedtalk_ray.coordinator.quota.monotonic", lambda: 100.0)
    for name in ("s1", "s2"):
        standing.member(name)
    # What a stranger sends under its name counts for nothing.
    for _ in range(5):
        forged = headers(standing, "s1", 1, "GET", "/v1/members") | {"Fedtalk-Signature": "00" * 64}
        assert raw(standing, "GET", "/v1/members", headers=forged).status_code == 401
    for count in range(1, 6):
        signed = headers(standing, "s1", count, "GET", "/v1/members")
        answer = raw(standing, "GET", "/v1/members", headers=signed)
        assert answer.status_code == (200 if count <= 3 else 429)
    assert answer.json() == {"detail": "one caller may ask 3 times a minute"}
    assert standing.line("s2").get("/v1/members")
    monkeypatch.setattr("fedtalk_ray.coordinator.quota.monotonic", lambda: 160.0)
    assert standing.line("s1").get("/v1/members")


def test_a_list_that_a_site_has_is_not_sent_again(standing: Standing) -> None:
    standing.member("s1")
    line = standing.line("s1")
    held = line.get("/v1/members")
    assert held and line.get("/v1/members", held) is None
    signed = headers(standing, "s1", 10, "GET", "/v1/members")
    tag = f'"{hashlib.sha256(held).hexdigest()}"'
    again = raw(standing, "GET", "/v1/members", headers=signed | {"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    # Of strangers nobody is told whether the list is still the same.
    assert raw(standing, "GET", "/v1/members", headers={"If-None-Match": tag}).status_code == 401
    standing.member("s2")
    assert line.get("/v1/members", held) == standing.files.signed_members() != held
