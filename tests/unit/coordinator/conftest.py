"""A gate on the network of this machine, with a real certificate, and sites that call it."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedtalk_ray.commands.cli import main
from fedtalk_ray.coordinator.gate import Gate
from fedtalk_ray.coordinator.http import open_door
from fedtalk_ray.enrolment.authority import Authority
from fedtalk_ray.enrolment.invite import request_of
from fedtalk_ray.messages import Plan
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.protocol import run_context, seal_frame
from fedtalk_ray.sites.connection import Connection
from fedtalk_ray.sites.folder import SiteFolder


class Standing:
    """A coordinator that listens, and what its run would ask of it."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.create(folder / "authority", ["localhost"])
        self.files = self.authority.coordinator
        self.gate = Gate(self.files, folder / "served", late_after=30.0)
        self.keys: dict[str, SigningKey] = {}
        self.loop = asyncio.new_event_loop()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._open = self.ask(open_door(self.gate, self.files, self.gate.served, self._listening).keep_open())

    @property
    def address(self) -> str:
        return f"https://localhost:{self.port}"

    def member(self, name: str) -> SigningKey:
        """Lets somebody in; its key."""
        self.keys[name] = SigningKey.generate()
        self.authority.sign([request_of(self.authority.invite(name), self.keys[name])])
        return self.keys[name]

    def site(self, place: Path, name: str = "s1") -> SiteFolder:
        """A new site's folder, and the site let in."""
        made = SiteFolder.create(place, self.authority.invite(name), self.address, self.files.authority.read_bytes())
        self.authority.sign([made.request])
        return made

    def line(self, name: str, key: SigningKey | None = None) -> Connection:
        return Connection(self.address, self.files.authority, name, key or self.keys[name], longest_wait=0.5)

    def ask(self, call: Any) -> Any:
        """The result of what the run asks, from this thread."""
        return asyncio.run_coroutine_threadsafe(call, self.loop)

    def turn(self) -> None:
        """Whatever the loop was given has begun, and ended if nothing keeps it."""
        for _ in range(20):
            self.ask(asyncio.sleep(0)).result()

    def plan(self, exchange: int = 1) -> bytes:
        plan = Plan("run", exchange, 1, b"", b"", b"", 1.0, tuple(sorted(self.keys)))
        return seal_frame(SigningKey.read_from(self.files.server_key), run_context("run"), plan)

    def close(self) -> None:
        self._open.cancel()
        self.turn()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


Command = Callable[..., str]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line that succeeds; what it prints."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(each) for each in arguments])
        assert not ended.value.code
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line that is refused; the one line that says why."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(each) for each in arguments])
        error = capsys.readouterr().err
        assert ended.value.code == 1 and error.count("\n") == 1, error
        return error

    return run


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Standing]:
    made = Standing(tmp_path)
    yield made
    made.close()
