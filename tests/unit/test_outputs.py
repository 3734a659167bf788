"""Outputs appear whole or not at all, and what cannot be written is said in one line."""

import errno
import os
import stat
from pathlib import Path

import pytest

from fedtalk_ray.outputs import OutputError, new_file, new_folder, write_synced
from fedtalk_ray.privacy.keys import SigningKey


def names(folder: Path) -> list[str]:
    """Everything in the folder, hidden leftovers included."""
    return sorted(path.name for path in folder.iterdir())


def fill(place: Path, text: str) -> None:
    (place / "a.txt").write_text(text)


def test_a_folder_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with new_folder(target) as place:
        fill(place, "new")
        assert not target.exists()
    assert (target / "a.txt").read_text() == "new"
    assert names(tmp_path / "deep") == ["out"]


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out.json"
    with new_file(target) as place:
        place.write_text("new")
        assert not target.exists() and place.suffix == ".json"
    assert target.read_text() == "new"
    assert names(tmp_path / "deep") == ["out.json"]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
def test_a_block_that_fails_leaves_nothing_and_its_own_error_comes_out(tmp_path: Path, error: type) -> None:
    with pytest.raises(error), new_folder(tmp_path / "out") as place:
        fill(place, "half")
        raise error
    with pytest.raises(error), new_file(tmp_path / "out.txt") as place:
        place.write_text("half")
        raise error
    assert names(tmp_path) == []


def test_a_block_that_fails_leaves_the_old_output_as_it_was(tmp_path: Path) -> None:
    folder, file = tmp_path / "out", tmp_path / "out.txt"
    folder.mkdir()
    fill(folder, "old")
    file.write_text("old")
    with pytest.raises(Interrupted), new_folder(folder, overwrite=True) as place:
        fill(place, "half")
        raise Interrupted
    with pytest.raises(Interrupted), new_file(file) as place:
        place.write_text("half")
        raise Interrupted
    assert (folder / "a.txt").read_text() == file.read_text() == "old"
    assert names(tmp_path) == ["out", "out.txt"]


def test_a_folder_in_use_is_refused_before_any_work(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    says = f"output {tmp_path} already exists; .* or give --overwrite"
    with pytest.raises(OutputError, match=says), new_folder(tmp_path):
        pytest.fail("the block ran")
    with pytest.raises(OutputError, match="already exists"), new_folder(tmp_path / "a.txt"):
        pytest.fail("the block ran")
    assert (tmp_path / "a.txt").read_text() == "old"


def test_an_empty_folder_is_free_to_use(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as place:
        fill(place, "new")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a.txt"]


def test_overwrite_replaces_all_of_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "b.txt").write_text("old")
    with new_folder(target, overwrite=True) as place:
        fill(place, "new")
        assert names(target) == ["b.txt"]
    assert names(target) == ["a.txt"] and names(tmp_path) == ["out"]


def test_a_file_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    with new_file(target) as place:
        place.write_text("new")
    assert target.read_text() == "new" and names(tmp_path) == ["out.txt"]


def test_a_half_written_folder_of_a_killed_run_is_no_hindrance(tmp_path: Path) -> None:
    leftover = tmp_path / f".out.{os.getpid()}.part"
    leftover.mkdir()
    (leftover / "rest").write_text("")
    with new_folder(tmp_path / "out") as place:
        assert names(place) == []
        fill(place, "new")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("writer", [new_folder, new_file])
def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path, writer) -> None:
    (tmp_path / "taken").write_text("")
    target = tmp_path / "taken" / "out"
    says = f"cannot write {target}: (Not a directory|File exists); .*taken"
    with pytest.raises(OutputError, match=says) as caught, writer(target):
        pytest.fail("the block ran")
    assert "\n" not in str(caught.value)


def refusing_replace(monkeypatch: pytest.MonkeyPatch, code: int, allowed: int = 0) -> None:
    """os.replace as a full or read-only disk answers it, after `allowed` calls that work."""
    real, calls = os.replace, []

    def replace(source, target) -> None:
        calls.append(source)
        if len(calls) == allowed + 1:
            raise OSError(code, os.strerror(code), str(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize(
    ("code", "says"),
    [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")],
)
def test_a_full_or_read_only_disk_is_one_clear_line(tmp_path: Path, monkeypatch, code: int, says: str) -> None:
    for writer, write in ((new_folder, fill), (new_file, lambda place, text: place.write_text(text))):
        target = tmp_path / "out"
        with monkeypatch.context() as patch:
            refusing_replace(patch, code)
            with pytest.raises(OutputError, match=f"cannot write {target}: {says}") as caught, writer(target) as place:
                write(place, "new")
        assert "\n" not in str(caught.value)
        assert names(tmp_path) == []


def test_a_disk_that_fills_in_the_block_is_one_clear_line(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputError, match=f"cannot write {target}: No space left"), new_folder(target) as place:
        fill(place, "half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_a_swap_that_fails_half_way_leaves_the_old_folder_in_place(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "out"
    target.mkdir()
    fill(target, "old")
    with monkeypatch.context() as patch:
        refusing_replace(patch, errno.EIO, allowed=1)
        with pytest.raises(OutputError), new_folder(target, overwrite=True) as place:
            fill(place, "new")
    assert names(tmp_path) == ["out"]
    assert (target / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/somewhere/else.mp4"),
        OSError(errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("writer", [new_folder, new_file])
def test_what_fails_inside_and_is_not_about_the_output_stays_what_it_is(tmp_path: Path, writer, error) -> None:
    """B16: any error of the system, Ray's or a read's, became "cannot write OUT"."""
    with pytest.raises(type(error)) as caught, writer(tmp_path / "out"):
        raise error
    assert caught.value is error and names(tmp_path) == []


def test_a_file_beside_the_output_is_not_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "out.txt"):
        (tmp_path / "input.txt").read_text()
    with pytest.raises(OutputError, match="cannot write"), new_folder(tmp_path / "out") as place:
        (place / "missing" / "a.txt").write_text("")


def test_what_is_synced_is_for_its_owner_only_whatever_lay_there(tmp_path: Path) -> None:
    """What clients spent and answered, which may lie in a folder that others read."""
    path, before = tmp_path / "ledgers" / "ana.json", os.umask(0)
    try:
        path.parent.mkdir()
        path.write_text("old")
        write_synced(path, "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text() == "new"
    assert names(path.parent) == ["ana.json"]


@pytest.mark.parametrize("write", [lambda path: write_synced(path, "new"), SigningKey.kept_in])
def test_the_new_name_is_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write) -> None:
    """After a power cut the old file was back under the name: both of a client's books, and nobody noticed."""
    done, replace, path = [], os.replace, tmp_path / "ledgers" / "ana.json"

    def replaced(source, target) -> None:
        replace(source, target)
        done.append("replaced")

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.fstat(file).st_ino))
    write(path)
    assert done == [path.stat().st_ino, "replaced", path.parent.stat().st_ino]


def test_a_file_system_that_syncs_no_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync)
    write_synced(tmp_path / "ana.json", "new")
    assert (tmp_path / "ana.json").read_text() == "new"
