"""`fedtalk join` and `fedtalk site` with what is wrong: one line, and nothing written or sent before it."""

import threading
from pathlib import Path
from typing import Any

import pytest

from fedtalk_ray.enrolment.invite import request_of
from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.privacy.client_ledger import Agreement, ClientLedger
from fedtalk_ray.privacy.client_record import ClientRecord
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.protocol import Aborted
from fedtalk_ray.sites.folder import SiteFolder
from fedtalk_ray.sites.policy import Policy
from fedtalk_ray.sites.site import Site
from tests.unit.coordinator.conftest import Command, Standing


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "one.mp4").touch()
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"address": "https://localhost:1"}, "nobody answers at https://localhost:1 ("),
        ({"address": "http://localhost"}, "'http://localhost' is no coordinator's address"),
        ({"--invite": "half a code"}, "--invite is no whole code"),
        ({"--invite": None}, "is no site yet: give the coordinator's address, --invite and --clips"),
        ({"--clips": "none"}, "is no folder"),
        ({"policy": "fewest: 3"}, "unknown key 'fewest'"),
    ],
)
def test_what_is_wrong_at_the_first_time(
    standing: Standing, tmp_path: Path, clips: Path, refused: Command, changes: dict[str, Any], said: str
) -> None:
    (tmp_path / "policy.yaml").write_text(changes.pop("policy", "fewest_survivors: 8\n"))
    options = {"--site": tmp_path / "site", "--clips": clips, "--policy": tmp_path / "policy.yaml"}
    options |= {"address": standing.address, "--invite": standing.authority.invite("s1").code()} | changes
    address = options.pop("address")
    given = [each for name, value in options.items() if value for each in (name, value)]
    assert said in refused("join", address, *given)
    assert not (tmp_path / "site").exists() and not standing.files.waiting()


def test_a_code_that_was_used_is_said_to_be(standing: Standing) -> None:
    """The coordinator cannot know which codes were used, but it knows who is a member."""
    invite = standing.authority.invite("s1")
    standing.authority.sign([request_of(invite, SigningKey.generate())])
    said = standing.line("s1", SigningKey.generate()).ask_for_membership(request_of(invite, SigningKey.generate()))
    assert "s1 is a member with another key" in said and "it was used already" in said
    fresh = request_of(standing.authority.invite("s2"), SigningKey.generate())
    assert standing.line("s2", SigningKey.generate()).ask_for_membership(fresh) == ""


def test_who_was_revoked_or_has_left_comes_back_by_a_new_code(standing: Standing, tmp_path: Path) -> None:
    first, authority = standing.authority.invite("s1"), standing.files.authority.read_bytes()
    site = SiteFolder.create(tmp_path / "site", first, standing.address, authority)
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


def test_a_site_that_leaves_keeps_what_it_spent_and_nothing_that_acts_for_it(
    standing: Standing,
    tmp_path: Path,
    clips: Path,
    refused: Command,
    told: Command,
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
    ClientRecord(run.client("s1").protocol_state).train(5, "aa")
    ClientLedger(site.ledger).charge("a1b2", 1, 0, None, Agreement())
    site.policy.write_text("rounds: 5\n")
    assert told("site", "leave", place, "--yes").startswith("s1 has left")
    left = {path.name for path in place.rglob("*") if path.is_file() and not path.name.endswith(".lock")}
    kept = {"site.json", "authority.pem", "policy.yaml", "s1.json", "s1.rounds", "protocol.json", "model.json"}
    assert left == kept and (run.pipeline / "model.json").exists()
    everything = b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())
    assert old.secret not in everything and old.secret.hex().encode() not in everything
    assert told("site", "ledger", place).endswith("left of 5 rounds: 4\n")
    assert "has left its federation" in refused("join", "--site", place, "--clips", clips)
    # It comes back by a new code, with a new key; ledger and record go on.
    site.ask_anew(standing.authority.invite("s1", new_key=True))
    with pytest.raises(Aborted, match="old round"):
        ClientRecord(site.run("a1b2").client("s1").protocol_state).train(5, "bb")
    assert site.key.public != old.public and site.rounds_spent() == {"a1b2": 1}


def test_a_site_tells_of_itself(standing: Standing, tmp_path: Path, refused: Command, told: Command) -> None:
    assert "is no site's folder" in refused("site", "status", tmp_path)
    place = tmp_path / "site"
    site = standing.site(place)
    site.take_members(standing.files.signed_members())
    lines = told("site", "status", place).splitlines()
    member = standing.authority.members().member("s1")
    assert member is not None
    assert lines == [
        f"s1 at {standing.address}, key {site.key.public.hex()[:16]}...",
        f"member until {member.until}, list number 2",
        "nothing was spent yet",
    ]
    assert "has no model of any run" in refused("site", "personalize", place)
    (place / "site.json").write_text("{}")
    assert "does not say 'name'" in refused("site", "status", place)
