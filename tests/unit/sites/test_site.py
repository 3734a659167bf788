"""A site's own side: what it keeps, what it tells, and that an offer or a list that is not right moves nothing."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedtalk_ray.coordinator.offer import conditions_of, difference
from fedtalk_ray.coordinator.served import ServedFiles, safe_name
from fedtalk_ray.corpora.source import CorpusError
from fedtalk_ray.enrolment.authority import Authority
from fedtalk_ray.enrolment.invite import read_request
from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.roster import Pin, RosterFile, SignedRoster, found_federation, roster_of
from fedtalk_ray.outputs import OutputError
from fedtalk_ray.privacy.protocol import Code
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.shards.format import Manifest
from fedtalk_ray.sites.clips import clips_in
from fedtalk_ray.sites.folder import SiteFolder
from fedtalk_ray.sites.site import _told


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority", ["localhost"])


def new_site(authority: Authority, place: Path, name: str = "s1") -> SiteFolder:
    invite = authority.invite(name)
    return SiteFolder.create(place, invite, "https://localhost:1", authority.coordinator.authority.read_bytes())


def test_a_new_site_keeps_its_key_to_itself(authority: Authority, tmp_path: Path) -> None:
    invite = authority.invite("s1")
    pem = authority.coordinator.authority.read_bytes()
    site = SiteFolder.create(tmp_path / "site", invite, "https://localhost:1", pem)
    assert (site.name, site.address) == ("s1", "https://localhost:1")
    assert read_request(site.request, authority.coordinator.authority_key).key == site.key.public
    for path in [site.path, *site.path.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) in (0o600, 0o700), path
    with pytest.raises(OutputError, match="already exists"):
        SiteFolder.create(tmp_path / "site", invite, "https://localhost:1", pem)
    run = site.run("ab12")
    assert run.client("s1").signing_key.read_bytes() == site.key_file.read_bytes()
    assert run.client("s1").protocol_state.exists()
    assert [found.path.name for found in site.runs()] == ["ab12"]
    for name in ("../x", "", "a/b"):
        with pytest.raises(EnrolmentError, match="cannot be a folder's name"):
            site.run(name)
    # One process at a time.
    with site.alone(), pytest.raises(RunError, match="at work in another process"), site.alone():
        pass
    with site.alone():
        pass


def test_the_roster_of_sites_is_the_authority_s(authority: Authority, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert isinstance(roster_of(run), RosterFile)
    site = new_site(authority, tmp_path / "site")
    authority.sign([site.request])
    found_federation(run, "ab12", bytes(16), site.authority_key, authority.coordinator.signed_members())
    roster = roster_of(run)
    assert isinstance(roster, SignedRoster)
    found, name = roster.read()
    assert name == "ab12" and found.clients == {"s1": site.key.public}
    pin = roster.pin()
    assert roster.keeps(pin) and roster.keeps(Pin(pin.length - 1, "of an older list"))
    assert not roster.keeps(Pin(pin.length, "of another list")) and not roster.keeps(Pin(pin.length + 1, ""))
    signed = run.members.read_bytes()
    run.members.write_bytes(signed[:-1] + bytes([signed[-1] ^ 1]))
    with pytest.raises(RunError, match=r"the members in .* cannot be read"):
        roster.read()


def test_the_coordinator_is_told_nothing_of_clips() -> None:
    hidden = {Code.NOTHING_TO_GIVE, Code.NOT_FINITE, Code.RECORD_DAMAGED}
    for code in Code:
        assert _told({str(code): 1}) == (Code.CANNOT_GO_ON if code in hidden else code)


def test_clips_are_found_in_a_folder_and_in_people_s_folders(tmp_path: Path) -> None:
    for name in ("one.mp4", "ann/two.MOV", "ann/three.mp4", ".hidden/four.mp4", "bob/notes.txt", "five.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [(clip.identity, clip.clip) for clip in clips_in(tmp_path, "s1")]
    assert found == [("ann", "three"), ("ann", "two"), ("s1", "one")]
    with pytest.raises(CorpusError, match="holds no clip"):
        clips_in(tmp_path / "bob", "s1")
    with pytest.raises(CorpusError, match="is no folder"):
        clips_in(tmp_path / "none", "s1")


def test_clips_that_were_prepared_otherwise_are_named(make_shards: Callable[..., tuple[Path, Manifest]]) -> None:
    manifest = Manifest("folder", 144, 25, 16000, "lower-face", "abc", {})
    asked = conditions_of(manifest)
    assert difference(asked, asked) == ""
    assert difference(asked | {"frame_size": 192}, asked) == "--size is 192, and the run needs 144"
    assert difference(asked, {}) == "--size is 144, and the run needs None"
    # Under which name the autoencoder is known makes no difference, what it is does.
    assert difference(asked | {"autoencoder": "elsewhere/lower-face"}, asked) == ""
    assert "--autoencoder is 'xyz'" in difference(asked | {"autoencoder_fingerprint": "xyz"}, asked)


def test_a_model_of_sites_is_data_alone(tmp_path: Path) -> None:
    served, model = ServedFiles(tmp_path / "served"), tmp_path / "model"
    (model / "denoiser").mkdir(parents=True)
    (model / "model_index.json").write_text("{}")
    (model / "denoiser" / "weights.safetensors").write_bytes(b"1234")
    parts = served.add_model(model)
    assert [part.name for part in parts] == ["denoiser/weights.safetensors", "model_index.json"]
    found = served.find(parts[0].digest.hex())
    assert found is not None and found.read_bytes() == b"1234"
    served.keep_only({parts[1].digest})
    assert served.find(parts[0].digest.hex()) is None and served.find(parts[1].digest.hex()) is not None
    assert served.find("../model/model_index.json") is None
    (model / "pytorch_model.bin").touch()
    with pytest.raises(RunError, match=r"pytorch_model\.bin cannot be served"):
        served.add_model(model)
    for name in ("../x.json", "/etc/x.json", "a/../../x.json", "x.bin", "x.py", "", "a//x.json", ".json/../x.json"):
        with pytest.raises(RunError, match="no place in a model's folder"):
            safe_name(name)
    assert safe_name("unet/config.json") == "unet/config.json"
