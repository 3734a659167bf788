"""Who belongs: codes that work once, requests that prove two secrets, lists that nobody else can sign or turn back."""

import json
import stat
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from fedtalk_ray.commands.cli import main
from fedtalk_ray.enrolment.authority import Authority
from fedtalk_ray.enrolment.coordinator_files import MOST_OF_AN_INVITE, MOST_REQUESTS, CoordinatorFiles
from fedtalk_ray.enrolment.invite import Invite, request_of
from fedtalk_ray.enrolment.membership import (
    EnrolmentError,
    Member,
    Membership,
    later,
    open_membership,
    seal_membership,
)
from fedtalk_ray.messages import EnrolmentRequest
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.wire import decode, encode


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority", ["localhost", "127.0.0.1"])


def let_in(authority: Authority, name: str, key: SigningKey, new_key: bool = False) -> None:
    (decision,) = authority.sign([request_of(authority.invite(name, new_key=new_key), key)])
    assert decision.name == name and not decision.refused


def test_a_site_becomes_a_member_by_its_code(authority: Authority) -> None:
    key = SigningKey.generate()
    let_in(authority, "s1", key)
    found = authority.coordinator.check().membership()
    assert found.roster().clients == {"s1": key.public}
    assert found.server == SigningKey.read_from(authority.coordinator.server_key).public
    assert found.version == 2 and found.member("s1") and not found.member("s2")
    # Who has two codes would count twice in every sum, and hold two of its shares.
    (decision,) = authority.sign([request_of(authority.invite("s2"), key)])
    assert "this very key" in decision.refused


def test_everything_of_the_authority_is_for_its_owner_alone(authority: Authority, tmp_path: Path) -> None:
    let_in(authority, "s1", SigningKey.generate())
    assert stat.S_IMODE((tmp_path / "authority").stat().st_mode) == 0o700
    for path in (tmp_path / "authority").rglob("*"):
        if path.name != ".authority.json.lock":
            assert stat.S_IMODE(path.stat().st_mode) in (0o600, 0o700), path
    # The coordinator is given no key of the authority's, and no code.
    invite, key = authority.invite("s2"), (tmp_path / "authority" / "authority.key").read_bytes()
    held = b"".join(path.read_bytes() for path in authority.coordinator.folder.rglob("*") if path.is_file())
    assert not any(secret in held or secret.hex().encode() in held for secret in (key, invite.secret))


def test_a_code_lets_one_key_in(authority: Authority) -> None:
    invite = authority.invite("s1")
    first, second = SigningKey.generate(), SigningKey.generate()
    assert not authority.sign([request_of(invite, first)])[0].refused
    assert authority.sign([request_of(invite, second)])[0].refused == "its code was used already"
    # The same request again, as it still waits at the coordinator, changes nothing.
    version = authority.members().version
    assert not authority.sign([request_of(invite, first)])[0].refused
    assert authority.members().version == version
    assert authority.members().roster().clients == {"s1": first.public}


def forged(request: bytes, **changes: bytes) -> bytes:
    return encode(replace(decode(EnrolmentRequest, request), **changes))


def test_requests_that_prove_too_little_are_refused(authority: Authority) -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    older = request_of(authority.invite("s1"), key)
    invite = authority.invite("s1")
    good, proof = request_of(invite, key), decode(EnrolmentRequest, request_of(invite, other)).code_proof
    requests = {
        "another code": request_of(replace(invite, secret=bytes(16)), key),
        "another name": request_of(replace(invite, name="s2"), key),
        "a later day": request_of(replace(invite, until="2999-12-31"), key),
        "an authority of her own": request_of(Invite.new("s1", b"certificate", invite.until, other), key),
        "an older code": older,
        "another key": good.replace(key.public, other.public),
        "another's proof of the code": forged(good, code_proof=proof),
        "no proof": good[:-64] + bytes(64),
        "garbage": b"\0" * 100,
        "too long": good + bytes(1000),
    }
    for who, request in requests.items():
        (decision,) = authority.sign([request])
        assert decision.refused and not authority.members().members, who
    # And nobody who was invited is kept out by it.
    assert not authority.sign([good])[0].refused


def test_where_two_keys_come_with_one_code_neither_is_let_in(authority: Authority) -> None:
    """Whoever stole it could else win by the order in which requests are looked at."""
    invite = authority.invite("s1")
    requests = [request_of(invite, SigningKey.generate()) for _ in range(2)]
    assert all("two keys came with its code" in decision.refused for decision in authority.sign(requests))
    assert not authority.members().members
    # Who has another code for that name disturbs nobody.
    stranger = request_of(replace(invite, secret=bytes(16)), SigningKey.generate())
    assert [bool(decision.refused) for decision in authority.sign([requests[0], stranger])] == [False, True]


@pytest.mark.parametrize("deed", ["sign", "revoke"])
def test_what_was_decided_is_published_after_a_kill(
    authority: Authority, deed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its own books and the list that it signs for the coordinator."""
    let_in(authority, "s1", SigningKey.generate())
    request = request_of(authority.invite("s2"), SigningKey.generate())

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedtalk_ray.enrolment.authority.seal_membership", killed)
        with pytest.raises(KeyboardInterrupt):
            authority.sign([request]) if deed == "sign" else authority.revoke("s1")
    authority.sign([request]) if deed == "sign" else authority.revoke("s1")
    names = set(authority.coordinator.membership().roster().clients)
    assert names == ({"s1", "s2"} if deed == "sign" else set())


def test_an_older_copy_of_its_books_signs_no_number_twice(authority: Authority, tmp_path: Path) -> None:
    state = tmp_path / "authority" / "authority.json"
    before = state.read_text()
    let_in(authority, "s1", SigningKey.generate())
    state.write_text(before)
    let_in(authority, "s2", SigningKey.generate())
    assert authority.coordinator.membership().version == 3


def test_a_code_runs_out(authority: Authority, tmp_path: Path) -> None:
    invite = authority.invite("s1", days=14)
    state = tmp_path / "authority" / "authority.json"
    found = json.loads(state.read_text())
    assert found["invites"]["s1"]["until"] == (date.today() + timedelta(days=14)).isoformat()
    found["invites"]["s1"]["until"] = (date.today() - timedelta(days=1)).isoformat()
    state.write_text(json.dumps(found))
    assert "ran out" in authority.sign([request_of(invite, SigningKey.generate())])[0].refused
    # A member whose time is over leaves the list when it is signed again.
    let_in(authority, "s1", SigningKey.generate())
    found = json.loads(state.read_text())
    found["members"]["s1"][1] = (date.today() - timedelta(days=1)).isoformat()
    state.write_text(json.dumps(found))
    version = authority.members().version
    authority.sign([])
    assert not authority.members().members and authority.members().version == version + 1


def test_who_is_revoked_is_out_and_its_code_too(authority: Authority) -> None:
    key = SigningKey.generate()
    invite = authority.invite("s1")
    request = request_of(invite, key)
    authority.sign([request])
    authority.revoke("s1")
    assert authority.coordinator.membership().members == ()
    assert authority.coordinator.membership().revoked == ("s1",)
    assert authority.sign([request])[0].refused
    with pytest.raises(EnrolmentError, match="'s9' is neither a member nor invited"):
        authority.revoke("s9")
    # Invited anew it comes back.
    let_in(authority, "s1", SigningKey.generate())
    assert authority.coordinator.membership().revoked == ()


def test_who_lost_its_key_comes_with_another(authority: Authority) -> None:
    let_in(authority, "s1", SigningKey.generate())
    with pytest.raises(EnrolmentError, match="s1 is a member already; --new-key"):
        authority.invite("s1")
    with pytest.raises(EnrolmentError, match="s2 is no member"):
        authority.invite("s2", new_key=True)
    new = SigningKey.generate()
    let_in(authority, "s1", new, new_key=True)
    assert authority.members().roster().clients == {"s1": new.public}


def test_no_name_is_a_path(authority: Authority) -> None:
    key = SigningKey.generate()
    for name in ("", ".", "..", "a/b", "../s1", "a\0", "-s1", "x" * 65, "s 1", "é"):
        for give in (authority.invite, authority.token):
            with pytest.raises(EnrolmentError, match="cannot be a"):
                give(name)
        listed = Membership(1, bytes(32), (Member(name, bytes(32), "2030-01-01"),))
        with pytest.raises(EnrolmentError):
            open_membership(seal_membership(key, listed), key.public)
    one, two = Member("s1", b"1" * 32, "2030-01-01"), Member("s2", b"1" * 32, "2030-01-01")
    for members in ((one, one), (one, two)):
        with pytest.raises(EnrolmentError, match="twice"):
            open_membership(seal_membership(key, Membership(1, bytes(32), members)), key.public)


def test_a_list_that_was_altered_or_signed_by_another_is_refused(authority: Authority, tmp_path: Path) -> None:
    let_in(authority, "s1", SigningKey.generate())
    signed = authority.coordinator.signed_members()
    another = Authority.create(tmp_path / "another", ["localhost"])
    public = SigningKey.read_from(tmp_path / "authority" / "authority.key").public
    assert open_membership(signed, public).member("s1")
    with pytest.raises(EnrolmentError, match="not signed by this federation's authority"):
        open_membership(another.coordinator.signed_members(), public)
    for place in range(0, len(signed), 7):
        broken = bytearray(signed)
        broken[place] ^= 1
        with pytest.raises(EnrolmentError):
            open_membership(bytes(broken), public)


def test_nobody_goes_back_to_an_older_list() -> None:
    key = SigningKey.generate()
    old, new, fork = (
        seal_membership(key, Membership(version, bytes(32), (), revoked))
        for version, revoked in ((1, ()), (2, ("s1",)), (2, ()))
    )
    assert later(None, old, key.public).version == 1
    assert later(old, new, key.public).version == 2 == later(new, new, key.public).version
    for older in (old, fork):
        with pytest.raises(EnrolmentError, match="number 2 was seen before"):
            later(new, older, key.public)


def test_requests_wait_side_by_side_and_not_without_end(tmp_path: Path) -> None:
    files = CoordinatorFiles(tmp_path)
    assert files.waiting() == []
    today = date.today().isoformat()

    def keep(data: bytes, invite: bytes, key: bytes = b"", until: str = "2999-12-31") -> bool:
        asked = EnrolmentRequest("s1", key or data, invite, until, b"", b"", b"")
        return files.keep_request(data, asked, today)

    assert keep(b"one", b"a") and keep(b"two", b"b") and keep(b"one", b"a")
    assert sorted(files.waiting()) == [b"one", b"two"]
    # A request that is signed in another way is the same one: it would else take the places of her whose code it is.
    assert all(keep(f"one, signed {number}".encode(), b"a", key=b"one") for number in range(9))
    assert sorted(files.waiting()) == [b"one", b"two"]
    kept = [keep(f"{number}".encode(), b"b") for number in range(5)]
    assert kept == [True] * (MOST_OF_AN_INVITE - 1) + [False] * 2
    for number in range(MOST_REQUESTS):
        (files.requests / f"2999-12-31-{number:064x}").touch()
    assert not keep(b"three", b"c") and keep(b"two", b"b")
    # What nobody can be let in by any more makes room.
    for number in range(MOST_REQUESTS):
        (files.requests / f"2999-12-31-{number:064x}").rename(files.requests / f"2001-01-01-{number:064x}")
    keep(b"three", b"c")
    assert keep(b"three", b"c") and b"three" in files.waiting() and len(files.waiting()) < 20


def test_a_code_survives_being_read_and_a_wrong_one_is_not_repeated() -> None:
    invite = Invite.new("s1.a", b"certificate", "2027-03-31", SigningKey.generate())
    assert Invite.parse(f" {invite.code()}\n") == invite
    assert invite.secret.hex() not in repr(invite)
    for code in ("", "s1", "s1:abc", invite.code()[:-1], f"{invite.code()}AAAA", f"../x{invite.code()[4:]}"):
        with pytest.raises(EnrolmentError) as refused:
            Invite.parse(code)
        assert invite.code()[8:30] not in str(refused.value)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "authority"
    commands = ["authority", "init", str(folder), "--host", "localhost"]
    with pytest.raises(SystemExit) as ended:
        main(commands)
    assert ended.value.code == 0
    with pytest.raises(SystemExit):
        main(["authority", "invite", str(folder), "s1"])
    code = capsys.readouterr().out.splitlines()[-1]
    key = SigningKey.generate()
    invite = Invite.parse(code)
    request = request_of(invite, key)
    Authority(folder).coordinator.keep_request(request, decode(EnrolmentRequest, request), date.today().isoformat())
    with pytest.raises(SystemExit):
        main(["authority", "sign", str(folder)])
    assert capsys.readouterr().out.splitlines() == [
        f"s1: member, key {key.public.hex()[:16]}...",
        f"1 members, list number 2: {folder / 'coordinator' / 'members'}",
    ]
    with pytest.raises(SystemExit):
        main(["authority", "revoke", str(folder), "s1"])
    assert "s1 belongs no more" in capsys.readouterr().out
    for arguments, said in (
        (["sign", "nowhere"], "nowhere is no authority's folder"),
        (["init", str(folder), "--host", "localhost"], "already exists"),
        (["init", str(tmp_path / "new"), "--host", "https://fed.example.org:8443"], "without https:// and port"),
        (["invite", str(folder), "a/b"], "'a/b' cannot be a site's name"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["authority", *arguments])
        error = capsys.readouterr().err
        assert ended.value.code == 1 and said in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()
