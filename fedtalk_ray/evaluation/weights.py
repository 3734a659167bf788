"""Whether the weights of a public network can be had, found out quickly: no command may hang because it is offline."""

import contextlib
import os
import pickle
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import torch

WAIT_SECONDS = 5.0
"""How long a server may stay silent, a name lookup included."""

UNUSABLE = (OSError, EOFError, RuntimeError, pickle.UnpicklingError)
"""What loading raises when a download breaks off, or the cached file is not what it should be."""


def obtainable(url: str, wait: float = WAIT_SECONDS) -> bool:
    """Whether torch.hub holds this file already, or its server answers within `wait` seconds.

    HF_HUB_OFFLINE=1, the switch that diffusers and transformers know, means that nothing is asked for.
    """
    name = Path(urlparse(url).path).name
    if (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file():
        return True
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true"):
        return False
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(request, timeout=wait):
            answered.set()

    # A name lookup knows no timeout: it is left behind in a thread that does not keep the program alive.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(wait)
    return answered.is_set()


@contextlib.contextmanager
def impatient(wait: float = WAIT_SECONDS) -> Iterator[None]:
    """Inside, a download whose server falls silent for `wait` seconds raises `TimeoutError` instead of hanging."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(wait)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
