"""Hosts of a test's own: network namespaces, each tied to this machine by a line that can be slow, lossy or cut.

A line is a pair of TUN devices; between them a thread carries every packet, or not. So delay, loss and rate are those
of packets, which TCP has to bear, and need nothing of the kernel but namespaces.
"""

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import selectors
import struct
import subprocess
import threading
import time
from dataclasses import dataclass

from tests.network_changes import changing_network

_NET = f"10.{100 + os.getpid() % 100}.77"
COORDINATOR_ADDRESS = f"{_NET}.1"
"""This machine, as hosts see it."""

_TUNSETIFF, _TUN_WITHOUT_HEADER = 0x400454CA, 0x0001 | 0x1000
_QUEUE_S = 0.5
"""A packet that would have to wait longer for its turn is lost, as in a router."""


def refusal() -> str:
    """Why there can be no hosts here, empty where there can."""
    try:
        _ip("netns", "add", name := f"ft{os.getpid()}-try")
        _ip("netns", "del", name)
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here ({error})"
    return ""


def enter(host: str) -> None:
    """Moves the calling process, which must have one thread, to a host."""
    with open(f"/run/netns/{host}") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0x40000000):
            raise OSError(ctypes.get_errno(), f"cannot enter {host}")


@dataclass
class Line:
    """One host's. host: the namespace's name. delay: seconds each way. loss: the part of packets that are lost. rate:
    bytes a second each way, 0 for any. up: whether anything passes."""

    host: str
    near: int
    far: int
    delay: float = 0.0
    loss: float = 0.0
    rate: float = 0.0
    up: bool = True

    def close(self) -> None:
        os.close(self.near)
        os.close(self.far)
        _ip("netns", "del", self.host)


class Hosts:
    """So many hosts. Nobody else is reached from them than this machine, under the address `COORDINATOR_ADDRESS`."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self._random = random.Random(seed)
        with changing_network():
            self.lines = [self._new(number) for number in range(count)]
        self._over = threading.Event()
        self._carrier = threading.Thread(target=self._carry, daemon=True)
        self._carrier.start()

    def close(self) -> None:
        self._over.set()
        self._carrier.join()
        with changing_network():
            for line in self.lines:
                line.close()

    def _new(self, number: int) -> Line:
        host, address = f"ft{os.getpid()}-{number}", f"{_NET}.{number + 2}"
        near, far = (f"ft{os.getpid()}{side}{number}" for side in "nf")
        line = Line(host, _tun(near), _tun(far))
        _ip("netns", "add", host)
        _ip("addr", "add", COORDINATOR_ADDRESS, "peer", address, "dev", near)
        _ip("link", "set", near, "up")
        _ip("link", "set", far, "netns", host)
        _ip("-n", host, "addr", "add", address, "peer", COORDINATOR_ADDRESS, "dev", far)
        for device in (far, "lo"):
            _ip("-n", host, "link", "set", device, "up")
        return line

    def _carry(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        free: dict[int, float] = {}
        numbers = itertools.count()
        with selectors.DefaultSelector() as selector:
            for line in self.lines:
                selector.register(line.near, selectors.EVENT_READ, (line, line.far))
                selector.register(line.far, selectors.EVENT_READ, (line, line.near))
            while not self._over.is_set():
                pause = min(0.05, waiting[0][0] - time.monotonic()) if waiting else 0.05
                for key, _ in selector.select(max(pause, 0)):
                    line, target = key.data
                    for packet in _packets(key.fd):
                        now = time.monotonic()
                        begins = max(now, free.get(target, 0.0)) if line.rate else now
                        if not line.up or self._random.random() < line.loss or begins - now > _QUEUE_S:
                            continue
                        free[target] = begins + (len(packet) / line.rate if line.rate else 0.0)
                        heapq.heappush(waiting, (free[target] + line.delay, next(numbers), target, packet))
                while waiting and waiting[0][0] <= time.monotonic():
                    _, _, target, packet = heapq.heappop(waiting)
                    os.write(target, packet)


def _packets(device: int) -> list[bytes]:
    found = []
    for _ in range(64):
        try:
            found.append(os.read(device, 1 << 16))
        except BlockingIOError:
            break
    return found


def _tun(name: str) -> int:
    """A new device of that name, which is there as long as its file is open."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _TUN_WITHOUT_HEADER))
    return device


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
