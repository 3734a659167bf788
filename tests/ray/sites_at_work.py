"""Sites as processes of their own: `python -m tests.ray.sites_at_work SITE...`. What they need is imported once.

What a site sends is written to SITE/sent, one line of hex a request. SITE/dies holds, as in "share 1", the stage and
exchange at which the site is killed, once, before it sends its answer; then it is started again.
"""

import os
import signal
import sys
from pathlib import Path

from fedtalk_ray.sites.connection import Connection
from fedtalk_ray.sites.folder import SiteFolder
from fedtalk_ray.sites.policy import load_policy
from fedtalk_ray.sites.site import Site


def work(place: Path) -> None:
    """One site, until the run is over; its words go to SITE/said."""
    folder = SiteFolder(place)
    policy, dies = place / "policy.yaml", place / "dies"
    with open(place / "said", "a", buffering=1) as said, open(place / "sent", "a", buffering=1) as sent:

        def tell(line: str) -> None:
            print(line, file=said)

        line = Connection(folder.address, folder.authority, folder.name, folder.key, tell, longest_wait=1.0)
        request = line._session.request

        def noted(method: str, address: str, data: bytes, **how: object) -> object:
            if dies.exists():
                stage, exchange = dies.read_text().split()
                if address.endswith(f"/{exchange}/{stage}"):
                    dies.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
            print(address.split("/v1/")[1], data.hex(), file=sent)
            return request(method, address, data=data, **how)

        line._session.request = noted  # type: ignore[assignment]
        site = Site(folder, line, load_policy(policy if policy.exists() else None), tell, wait_s=0.2)
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
