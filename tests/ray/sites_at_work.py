"""Sites as processes of their own: `python -m tests.ray.sites_at_work SITE...`. What they need is imported once.

With FEDTALK_LIGHT in the environment they train nothing: a client's update is made of random numbers.

Each is FOLDER/disk/site; in FOLDER/test, which is not of its disk, lies what the test has to do with it (`Beside`):
what it said and sent, and what it meets at which stage.
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from time import sleep, time

from fedtalk_ray.sites.connection import Connection
from fedtalk_ray.sites.folder import SiteFolder
from fedtalk_ray.sites.policy import load_policy
from fedtalk_ray.sites.site import Site
from jobs.benchmarks.light_slot import LightSlot

KILLED = "killed"
LIGHT = "FEDTALK_LIGHT"


@dataclass(frozen=True)
class Beside:
    """What a test has to do with one site."""

    site: Path

    @property
    def path(self) -> Path:
        return self.site.parents[1] / "test"

    @property
    def said(self) -> Path:
        return self.path / "said"

    @property
    def sent(self) -> Path:
        """Every request, a line of its path and its body in hex."""
        return self.path / "sent"

    @property
    def meets(self) -> Path:
        """Holds "STAGE WHAT" or "STAGE killed EXCHANGE": before the site next sends its answer to that stage it is
        killed and started again; else it waits while there is `met`, which it writes WHAT to."""
        return self.path / "meets"

    @property
    def clock(self) -> Path:
        """Holds what the site's clock showed when it began, in seconds."""
        return self.path / "clock"

    @property
    def met(self) -> Path:
        return self.path / "met"

    def meet(self, stage: str, exchange: str) -> None:
        at, _, what = self.meets.read_text().partition(" ") if self.meets.exists() else ("", "", "")
        if at == stage and (not what.startswith(KILLED) or what in (KILLED, f"{KILLED} {exchange}")):
            self.meets.rename(self.met)
            if what.startswith(KILLED):
                os.kill(os.getpid(), signal.SIGKILL)
            while self.met.exists():
                sleep(0.01)


def work(place: Path) -> None:
    """One site, until the run is over."""
    beside, folder = Beside(place), SiteFolder(place)
    policy = place / "policy.yaml"
    beside.clock.write_text(f"{time()}")
    with open(beside.said, "a", buffering=1) as said, open(beside.sent, "a", buffering=1) as sent:

        def tell(line: str) -> None:
            print(line, file=said)

        line = Connection(folder.address, folder.authority, folder.name, folder.key, tell, longest_wait=1.0)
        request = line._session.request

        def noted(method: str, address: str, data: bytes, **how: object) -> object:
            path = address.split("/v1/")[1]
            if path.startswith("replies/"):
                beside.meet(*path.split("/")[:0:-1])
            print(path, data.hex(), file=sent)
            return request(method, address, data=data, **how)

        line._session.request = noted  # type: ignore[assignment]
        agreed = load_policy(policy if policy.exists() else None)
        light = {"make_slot": LightSlot} if LIGHT in os.environ else {}
        site = Site(folder, line, agreed, tell, wait_s=0.2, **light)  # type: ignore[arg-type]
        with folder.alone():
            site.become_member()
            site.take_part(site.offered(), once=True)


def start(place: Path) -> int:
    """The process of a new site."""
    child = os.fork()
    if not child:
        work(place)
        os._exit(0)
    return child


if __name__ == "__main__":
    children = {start(Path(name)): Path(name) for name in sys.argv[1:]}
    failed = 0
    while children:
        child, status = os.wait()
        place = children.pop(child)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            children[start(place)] = place
        else:
            failed += status != 0
    sys.exit(failed)
