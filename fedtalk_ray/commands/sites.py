"""`fedtalk serve` and `fedtalk join`: a federation whose clients are sites, each on a machine of its own."""

import json
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from fedtalk_ray.errors import UserError


def serve(
    config: Annotated[Path, typer.Argument(help="YAML file, as of `fedtalk train`; its shards hold unseen people.")],
    tls: Annotated[Path, typer.Option(help="What the authority gave this coordinator: AUTH/coordinator.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dots reach inside sections.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any that is free.")] = 8443,
    late_after: Annotated[
        float, typer.Option(min=1, help="Seconds that sites have for training and each stage.")
    ] = 600,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Coordinate rounds over sites, clients on their own machines (docs/sites.md).

    Example: `fedtalk serve jobs/configs/sites.yaml --tls authority/coordinator`
    """
    from fedtalk_ray.actors.site_pool import Coordinator
    from fedtalk_ray.config import load_config
    from fedtalk_ray.enrolment.coordinator_files import CoordinatorFiles
    from fedtalk_ray.serving import serve as run_serve

    def tell(line: str) -> None:
        print(line, flush=True)

    def stay(sites: int) -> None:
        tell(f"the run is over; {sites} sites can fetch its model; Ctrl-C ends")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            tell("closed")

    coordinator = Coordinator(CoordinatorFiles(tls), host, port, late_after)
    path = run_serve(load_config(config, overrides), coordinator, resume, tell, stay)
    print(f"run: {path}")


def join(
    site: Annotated[Path, typer.Option(help="Folder of this site: its key, clips, ledger, models.")],
    address: Annotated[
        str | None, typer.Argument(help="The coordinator, https://HOST:8443; at the first time.")
    ] = None,
    invite: Annotated[str | None, typer.Option(help="The code from the authority, at the first time.")] = None,
    clips: Annotated[
        Path | None, typer.Option(help="Folder of clips, or of people's folders of clips; until they are prepared.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="YAML file of what this site agrees to (docs/sites.md).")] = None,
    speech: Annotated[
        str | None, typer.Option(help="Where this machine has the network that hears, if not where the run says.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Leave when the run is over.")] = False,
) -> None:
    """Take part in a federation with clips that stay here. Calls out only; started again, it goes on.

    Example: `fedtalk join https://fed.example.org:8443 --site site --invite CODE --clips clips`
    """
    import ray

    from fedtalk_ray.actors.connection import connect
    from fedtalk_ray.enrolment.invite import Invite
    from fedtalk_ray.sites.clips import clips_in, prepare_clips
    from fedtalk_ray.sites.connection import Connection, fetch_authority
    from fedtalk_ray.sites.folder import SiteFolder
    from fedtalk_ray.sites.policy import load_policy

    def tell(line: str) -> None:
        print(line, flush=True)

    agreed = load_policy(policy)
    folder = SiteFolder(site)
    if not folder.exists():
        if address is None or invite is None or clips is None:
            raise UserError(f"{site} is no site yet: give the coordinator's address, --invite and --clips")
        invited = Invite.parse(invite)
        # Before anything is written or sent.
        clips_in(clips, invited.name)
        folder = SiteFolder.create(site, invited, address, fetch_authority(address, invited))
    sources = [] if folder.shards.exists() else clips_in(clips or Path("clips"), folder.name)
    with folder.alone():
        from fedtalk_ray.sites.site import Site

        line = Connection(address or folder.address, folder.authority, folder.name, folder.key, tell)
        here = Site(folder, line, agreed, tell)
        here.become_member()
        offer = here.offered()
        if sources:
            conditions = json.loads(offer.conditions)
            connect("local")
            tell(f"{prepare_clips(sources, folder.shards, conditions, speech)} clips prepared")
            ray.shutdown()
        try:
            here.take_part(offer, once)
        except KeyboardInterrupt:
            print(f"stopped; `fedtalk join --site {site}` goes on", file=sys.stderr)
