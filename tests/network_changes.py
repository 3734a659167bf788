"""Whoever makes or removes network interfaces, and whoever runs a browser meanwhile, wait for each other.

Chromium gives up what it is loading when an interface comes or goes, and hears of it up to some seconds later.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEARD_WITHIN_S = 4.0
"""After so long a pause Chromium lost nothing any more; it reacts to a change with some delay."""

_LOCK = Path(tempfile.gettempdir()) / f"fedtalk-tests-network-{os.getuid()}.lock"


@contextmanager
def changing_network() -> Iterator[None]:
    """For whoever makes or removes interfaces, while it does."""
    with _alone() as lock:
        try:
            yield
        finally:
            os.utime(lock)


@contextmanager
def steady_network() -> Iterator[None]:
    """For a browser's test: nobody's interfaces come or go meanwhile, and it hears of none from before."""
    with _alone() as lock:
        time.sleep(max(0.0, min(HEARD_WITHIN_S, os.stat(lock).st_mtime + HEARD_WITHIN_S - time.time())))
        yield


@contextmanager
def _alone() -> Iterator[int]:
    """Holds the lock against other processes and other threads; gives its file, open."""
    lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)
