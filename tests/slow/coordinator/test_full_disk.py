"""A site whose disk is full, at each thing that it writes on its way into a run: one line, nothing half written, and
nothing sent."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedtalk_ray.outputs import OutputError
from fedtalk_ray.sites.folder import SiteFolder
from fedtalk_ray.sites.policy import Policy
from fedtalk_ray.sites.site import Site
from tests.unit.coordinator.conftest import Standing, refused


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system of a test's own here ({error})")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> None:
    with open(disk / "filler", "ab", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


def held_by(disk: Path) -> dict[str, bytes]:
    """Everything that lies there but what fills it and the lock, which says nothing."""
    return {
        str(path.relative_to(disk)): path.read_bytes()
        for path in sorted(disk.rglob("*"))
        if path.is_file() and path.name not in ("filler", ".lock")
    }


def test_a_site_that_cannot_be_made_asks_for_nothing(
    standing: Standing, tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "one.mp4").touch()
    join = ["join", standing.address, "--site", str(disk / "site"), "--clips", str(clips)]
    join += ["--invite", standing.authority.invite("s1").code()]
    fill(disk)
    assert "No space left on device; nothing was left half written" in refused(join, capsys)
    assert not held_by(disk) and not (disk / "site").exists() and not standing.files.waiting()
    (disk / "filler").unlink()
    # Made, and full when it is started again: what it knows stays as it was, and it asks for nothing.
    SiteFolder.create(
        disk / "site",
        standing.authority.invite("s2"),
        standing.address,
        standing.authority.coordinator.authority.read_bytes(),
    )
    fill(disk)
    before = held_by(disk)
    again = refused(["join", standing.address, "--site", str(disk / "site"), "--clips", str(clips)], capsys)
    assert "No space left on device" in again
    assert held_by(disk) == before and not standing.files.waiting()


def test_what_does_not_fit_leaves_what_was_there(standing: Standing, disk: Path) -> None:
    """The list of members; the model, which goes on where it broke off when there is room."""
    authority = standing.authority.coordinator.authority.read_bytes()
    folder = SiteFolder.create(disk / "site", standing.authority.invite("s1"), standing.address, authority)
    standing.authority.sign([folder.request])
    line = standing.line("s1", folder.key)
    here = Site(folder, line, Policy(), wait_s=0.1)
    fill(disk)
    before = held_by(disk)
    with pytest.raises(OutputError, match="No space left on device"):
        here.become_member()
    assert held_by(disk) == before
    (disk / "filler").unlink()
    here.become_member()
    content = bytes(range(256)) * 800
    part = standing.gate.served.add("model.json", content)
    with open(disk / "filler", "wb") as file:
        file.write(bytes(100 << 10))
    with pytest.raises(OutputError, match="No space left on device"):
        here._fetch_model((part,), folder.models / "m")
    assert not (folder.models / "m" / "model.json").exists()
    (disk / "filler").unlink()
    here._fetch_model((part,), folder.models / "m")
    assert (folder.models / "m" / "model.json").read_bytes() == content
