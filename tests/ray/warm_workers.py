"""Ray workers that have imported torch, diffusers and peft before they begin: forked from one process that did.

That import is ten seconds of a core, anew in every process of every slot, and was most of the time of tests on Ray. As
a program this stands for the `python` that Ray starts workers by: it hands its arguments, environment and open files to
the process that has imported, which forks, and it ends when the fork has ended.
"""

import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST = 1 << 20
"""Bytes of arguments and environment."""


@contextmanager
def warm_python(folder: Path) -> Iterator[str]:
    """The command that stands for `python` until the context ends, which closes the input of the process that
    forks. folder: a new one, for its address."""
    address = str(folder / "warm")
    serving = [sys.executable, __file__, "serve", address]
    with subprocess.Popen(serving, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", "the process that workers are forked from did not start"
        # Isolated and without site-packages: what stands between is up in a moment.
        yield f"{sys.executable} -I -S {__file__} run {address}"


def serve(address: str) -> None:
    """Forks for whoever asks, until standard input is closed."""
    import fedtalk_ray.training.resident  # noqa: F401

    assert "ray" not in sys.modules, "Ray draws names from random numbers, which forks would have in common"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            asking, _ = listener.accept()
            told, files, _, _ = socket.recv_fds(asking, MOST, 3)
            if os.fork() == 0:
                listener.close()
                # Never closed by hand: that this process has ended is how the one that asked learns of it.
                asking.detach()
                _become(files, *json.loads(told))
            asking.close()
            for file in files:
                os.close(file)


def _become(files: list[int], arguments: list[str], environment: dict[str, str], folder: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    random.seed()
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")
    sys.exit()


def run(address: str, arguments: list[str]) -> None:
    """Asks for a fork and waits until it has ended."""
    told = json.dumps([arguments, dict(os.environ), os.getcwd()]).encode()
    assert len(told) <= MOST, f"{len(told)} bytes of arguments and environment, more than {MOST}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as forking:
        forking.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MOST)
        forking.connect(address)
        socket.send_fds(forking, [told], [0, 1, 2])
        forking.recv(1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        run(sys.argv[2], sys.argv[3:])
