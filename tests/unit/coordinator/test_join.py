"""`fedtalk join` and `fedtalk site` with what is wrong: one line, and nothing written or sent before it."""

import io
import threading
from pathlib import Path

import pytest

from fedtalk_ray.commands.cli import main
from fedtalk_ray.enrolment.authority import Authority
from fedtalk_ray.enrolment.invite import request_of
from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.privacy.client_ledger import Agreement, ClientLedger
from fedtalk_ray.privacy.client_record import ClientRecord
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.protocol import Aborted
from fedtalk_ray.sites.connection import ConnectionRefused
from fedtalk_ray.sites.folder import SiteFolder
from fedtalk_ray.sites.policy import Policy
from fedtalk_ray.sites.site import Site
from tests.unit.coordinator.conftest import Standing, refused


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "one.mp4").touch()
    return folder


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("nobody there", "nobody answers at https://localhost:1 ("),
        ("another authority", "belongs to another authority than the one that made this code"),
        ("no https", "'http://localhost' is no coordinator's address"),
        ("half a code", "--invite is no whole code"),
        ("another name in it", "is not the code that the authority printed"),
        ("no clips", "holds no clip"),
        ("no folder", "is no folder"),
        ("unknown policy", "unknown key 'fewest'"),
        ("no invite", "is no site yet: give the coordinator's address, --invite and --clips"),
    ],
)
def test_what_is_wrong_at_the_first_time(
    standing: Standing, tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str], wrong: str, said: str
) -> None:
    code, address = standing.authority.invite("s1").code(), standing.address
    policy = tmp_path / "policy.yaml"
    policy.write_text("fewest: 3\n" if wrong == "unknown policy" else "fewest_survivors: 8\n")
    if wrong == "another authority":
        code = Authority.create(tmp_path / "another", ["localhost"]).invite("s1").code()
    if wrong == "no clips":
        (clips / "one.mp4").unlink()
    address = {"nobody there": "https://localhost:1", "no https": "http://localhost"}.get(wrong, address)
    folder = str(tmp_path / "none") if wrong == "no folder" else str(clips)
    arguments = ["join", address, "--site", str(tmp_path / "site"), "--clips", folder, "--policy", str(policy)]
    if wrong != "no invite":
        given = {"half a code": code[:-5], "another name in it": f"t{code}"}.get(wrong, code)
        arguments += ["--invite", given]
    assert said in refused(arguments, capsys)
    assert not (tmp_path / "site").exists() and not standing.files.waiting()


def test_a_code_that_was_used_is_said_to_be(
    standing: Standing, tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The coordinator cannot know which codes were used, but it knows who is a member."""
    invite = standing.authority.invite("s1")
    standing.authority.sign([request_of(invite, SigningKey.generate())])
    said = standing.line("s1", SigningKey.generate()).ask_for_membership(request_of(invite, SigningKey.generate()))
    assert "s1 is a member with another key" in said and "it was used already" in said
    assert (
        standing.line("s2", SigningKey.generate()).ask_for_membership(
            request_of(standing.authority.invite("s2"), SigningKey.generate())
        )
        == ""
    )


def test_who_was_revoked_or_has_left_comes_back_by_a_new_code(standing: Standing, tmp_path: Path) -> None:
    place, authority = tmp_path / "site", standing.files.authority.read_bytes()
    first = standing.authority.invite("s1")
    site = SiteFolder.create(place, first, standing.address, authority)
    standing.authority.sign([site.request])
    standing.authority.revoke("s1")
    # Without one it is told so, and with one it waits for the authority, though it is on the list of the revoked.
    heard: list[str] = []
    for again in (False, True):
        if again:
            site.ask_anew(first)
        with pytest.raises(EnrolmentError, match="no member any more"):
            Site(site, standing.line("s1", site.key), Policy(), heard.append, wait_s=0.1).become_member()
    site.leave()
    site.ask_anew(standing.authority.invite("s1"))
    waiting = threading.Thread(
        target=Site(site, standing.line("s1", site.key), Policy(), heard.append, wait_s=0.1).become_member
    )
    waiting.start()
    while not standing.files.waiting():
        waiting.join(0.05)
        assert waiting.is_alive()
    standing.authority.sign(standing.files.waiting())
    waiting.join(10)
    assert not waiting.is_alive() and heard[-1] == "s1 is one of 1 members" and not site.waits


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_a_site_that_leaves_keeps_what_it_spent_and_nothing_that_acts_for_it(
    standing: Standing,
    tmp_path: Path,
    clips: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, authority = tmp_path / "site", standing.files.authority.read_bytes()
    first = standing.authority.invite("s1")
    site = SiteFolder.create(place, first, standing.address, authority)
    standing.authority.sign([site.request])
    old = site.key
    run = site.run("a1b2")
    half = place / ".shards.17.part" / "clip.npy"
    fetched = run.served / "shared", run.path / ".released.17.part" / "model.json"
    prepared = site.shards / "client=s1" / "clip.npy"
    for made in (prepared, half, *fetched, site.models / "m" / "model.json", run.pipeline / "model.json"):
        made.parent.mkdir(parents=True)
        made.write_text("x")
    record = ClientRecord(run.client("s1").protocol_state)
    record.train(5, "aa")
    assert told(["site", "ledger", str(place)], capsys) == ["nothing was spent yet"]
    ClientLedger(site.ledger).charge("a1b2", 1, 0, None, Agreement())
    site.policy.write_text("rounds: 5\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    with pytest.raises(SystemExit) as ended:
        main(["site", "leave", str(place)])
    assert ended.value.code == 1
    assert site.key.public == old.public

    # A link may lead to what is somebody else's too: nothing has gone then, and it can be tried again.
    site.shards.rename(tmp_path / "elsewhere")
    site.shards.symlink_to(tmp_path / "elsewhere")
    assert "is a link" in refused(["site", "leave", str(place), "--yes"], capsys)
    assert site.key.public == old.public
    site.shards.unlink()
    (tmp_path / "elsewhere").rename(site.shards)

    assert told(["site", "leave", str(place), "--yes"], capsys)[0].startswith("s1 has left")
    left = {path.name for path in place.rglob("*") if path.is_file() and not path.name.endswith(".lock")}
    kept = {"site.json", "authority.pem", "policy.yaml", "s1.json", "s1.rounds", "protocol.json", "model.json"}
    assert left == kept and (run.pipeline / "model.json").exists()
    everything = b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())
    assert old.secret not in everything and old.secret.hex().encode() not in everything
    assert "s1 at" in (lines := told(["site", "status", str(place)], capsys))[0] and "has left" in lines[0]
    assert (
        "1 round" in (lines := told(["site", "ledger", str(place)], capsys))[0] and lines[-1] == "left of 5 rounds: 4"
    )
    assert "has left its federation" in refused(["join", "--site", str(place), "--clips", str(clips)], capsys)
    # The old code, which may still be in a service's environment, does not bring it back.
    again = ["join", "--site", str(place), "--clips", str(clips), "--invite", first.code()]
    assert "is the one that s1 had before it left" in refused(again, capsys)
    # It comes back by a new code, with a new key; ledger and record go on.
    site.ask_anew(standing.authority.invite("s1", new_key=True))
    with pytest.raises(Aborted, match="old round"):
        ClientRecord(site.run("a1b2").client("s1").protocol_state).train(5, "bb")
    (decision,) = standing.authority.sign([site.request])
    assert not decision.refused and site.key.public != old.public and site.rounds_spent() == {"a1b2": 1}
    assert standing.line("s1", site.key).get("/v1/members")
    with pytest.raises(ConnectionRefused):
        standing.line("s1", old).get("/v1/members")


def test_a_site_tells_of_itself(standing: Standing, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no site's folder" in refused(["site", "status", str(tmp_path)], capsys)
    invite = standing.authority.invite("s1")
    place = tmp_path / "site"
    site = SiteFolder.create(place, invite, standing.address, standing.files.authority.read_bytes())
    standing.authority.sign([site.request])
    site.take_members(standing.files.signed_members())
    with pytest.raises(SystemExit) as ended:
        main(["site", "status", str(place)])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    member = standing.authority.members().member("s1")
    assert member is not None
    assert lines == [
        f"s1 at {standing.address}, key {site.key.public.hex()[:16]}...",
        f"member until {member.until}, list number 2",
        "nothing was spent yet",
    ]
    assert "has no model of any run" in refused(["site", "personalize", str(place)], capsys)
    (place / "site.json").write_text("{}")
    assert "does not say 'name'" in refused(["site", "status", str(place)], capsys)
    (place / "site.json").write_text("[")
    assert "is damaged" in refused(["site", "status", str(place)], capsys)
