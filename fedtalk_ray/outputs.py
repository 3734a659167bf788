"""Outputs appear whole or not at all: written beside their place, then renamed into it."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from fedtalk_ray.errors import UserError


class OutputError(UserError):
    """An output cannot be written: its place is taken, read-only or full."""


@contextlib.contextmanager
def new_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, renamed to `path` when the block ends well and removed when it does not.

    Raises `OutputError` when `path` exists and holds anything (unless `overwrite`), or cannot be written.
    """
    path = _named(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())) and not overwrite:
        raise OutputError(f"output {path} already exists; choose another place or give --overwrite")
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
            if path.exists():
                os.replace(path, replaced)
            try:
                os.replace(partial, path)
            except OSError:
                if replaced.exists():
                    os.replace(replaced, path)
                raise
            if replaced.is_dir():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                replaced.unlink(missing_ok=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A file name to write to (same suffix), renamed to `path` when the block ends well."""
    path = _named(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _named(path: str | Path) -> Path:
    if not Path(path).name:
        raise OutputError(f"output {path} has no name of its own that could be renamed into place; name a new one")
    return Path(path)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns the operating system's refusals about `path` into one clear line; whatever else fails inside is not its
    business."""
    try:
        yield
    except OSError as error:
        if not _is_about(error, Path(path)):
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise OutputError(f"cannot write {path}: {error.strerror}; nothing was left half written{where}") from error
    except SafetensorError as error:
        # The system's refusal, as safetensors tells it: "... I/O error: No space left on device (os error 28)".
        if "os error" not in str(error):
            raise
        raise OutputError(f"cannot write {path}: {error}; nothing was left half written") from error


def _is_about(error: OSError, path: Path) -> bool:
    """Whether the system refused to write `path`, what is being written beside it, or a folder above it."""
    if error.filename is None:
        # A write to an open file names none.
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    # FFmpeg's libraries are given what they write as file:NAME.
    refused, own = Path(os.fsdecode(error.filename).removeprefix("file:")).absolute(), path.absolute()
    if refused == own or refused in own.parents or own in refused.parents:
        return True
    inside = refused.relative_to(own.parent).parts if own.parent in refused.parents else ("",)
    return inside[0].startswith((f".{own.name}.", f".{own.stem}."))


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """While no other process is in here with the same file, which need not exist."""
    lock = path.with_name(f".{path.name}.lock")
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def read_own(path: Path) -> str:
    """What `write_synced` wrote. A link in its place, which writing would replace and not follow, is an `OSError`."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
        return file.read()


def write_synced(path: Path, content: str | bytes) -> None:
    """Replaces a file, whole, by one that its owner alone can read, and returns when it is on disk under its name."""
    with new_file(path) as place, os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        # Of a file system that knows no such thing.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(folder)
