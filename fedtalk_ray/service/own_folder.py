"""A folder for what people give and get, which goes with its process: at its end, or when the next one begins.

A process that is killed cannot take its folder with it. Each holds a lock in its own, which the system lets go of when
it dies; whoever begins removes what nobody holds any more.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


@contextmanager
def own_folder(prefix: str) -> Iterator[Path]:
    """A new folder with that prefix in the temporary folder, for as long as the block lasts."""
    _remove_left(prefix)
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        lock = os.open(new := Path(name) / f"{LOCK}.new", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Under its name it is never seen free while the process lives.
            new.rename(new.with_name(LOCK))
            yield Path(name)
        finally:
            os.close(lock)


def _remove_left(prefix: str) -> None:
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            lock = os.open(left / LOCK, os.O_RDWR)
        except OSError:
            continue  # not ours, or only just begun
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue  # somebody is at work in it
        finally:
            os.close(lock)
