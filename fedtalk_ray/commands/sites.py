"""`fedtalk serve`, `join` and `site`: a federation whose clients are sites, each on a machine of its own."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedtalk_ray.errors import RunError, UserError

if TYPE_CHECKING:
    from fedtalk_ray.corpora.source import ClipSource
    from fedtalk_ray.sites.connection import Connection
    from fedtalk_ray.sites.folder import SiteFolder
    from fedtalk_ray.sites.policy import Policy

LOOK_S = 5.0
"""Seconds between two looks at whether sites can still come in."""

app = typer.Typer(help="What a site has agreed to, spent, and can use.", no_args_is_help=True)

SitePlace = Annotated[Path, typer.Argument(help="The site's folder.")]


def tell(line: str) -> None:
    """At once, wherever the output goes."""
    print(line, flush=True)


def serve(
    config: Annotated[Path, typer.Argument(help="YAML file, as of `fedtalk train`; its shards hold unseen people.")],
    tls: Annotated[Path, typer.Option(help="What the authority gave this coordinator: AUTH/coordinator.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dots reach inside sections.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any that is free.")] = 8443,
    late_after: Annotated[
        float, typer.Option(min=1, help="Seconds that sites have for training and each stage.")
    ] = 600,
    doors: Annotated[
        int, typer.Option(min=1, help="Processes that speak HTTPS; more where one core is not enough for many sites.")
    ] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Coordinate rounds over sites, clients on their own machines (docs/sites.md).

    Example: `fedtalk serve jobs/configs/sites.yaml --tls authority/coordinator`
    """
    from fedtalk_ray.actors.site_pool import Coordinator, Entrance
    from fedtalk_ray.config import load_config
    from fedtalk_ray.enrolment.coordinator_files import CoordinatorFiles
    from fedtalk_ray.serving import serve as run_serve

    def stay(sites: int, entrance: Entrance) -> None:
        tell(f"the run is over; {sites} sites can fetch its model; Ctrl-C ends")
        try:
            while True:
                time.sleep(LOOK_S)
                entrance.members()
        except KeyboardInterrupt:
            tell("closed")

    coordinator = Coordinator(CoordinatorFiles(tls), host, port, late_after, doors)
    path = run_serve(load_config(config, overrides), coordinator, resume, tell, stay)
    print(f"run: {path}")


def join(
    site: Annotated[Path, typer.Option(help="Folder of this site: its key, clips, ledger, models.")],
    address: Annotated[str | None, typer.Argument(help="The coordinator, as https://HOST:8443; kept in SITE.")] = None,
    invite: Annotated[
        str | None,
        typer.Option(envvar="FEDTALK_INVITE", help="The authority's code: the first time, or in place of one."),
    ] = None,
    clips: Annotated[
        Path | None, typer.Option(help="Folder of clips, or of people's folders of clips; kept in SITE.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="YAML file of what this site agrees to; copied to SITE/policy.yaml.")
    ] = None,
    speech: Annotated[
        str | None, typer.Option(help="Where this machine has the run's network that hears; kept in SITE.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Leave when the run is over.")] = False,
) -> None:
    """Take part in a federation with clips that stay here. Calls out only; started again, it goes on.

    Example: `fedtalk join https://fed.example.org:8443 --site site --invite CODE --clips clips`
    """
    from fedtalk_ray.enrolment.invite import Invite
    from fedtalk_ray.sites.clips import clips_in
    from fedtalk_ray.sites.connection import Connection, fetch_authority
    from fedtalk_ray.sites.folder import SiteFolder
    from fedtalk_ray.sites.policy import keep_policy, load_policy

    # All that can be wrong is looked at before anything is written or sent.
    load_policy(policy)
    invited = None if invite is None else Invite.parse(invite)
    folder = SiteFolder(site)
    if clips is not None:
        clips_in(clips, "somebody")
    if not folder.exists():
        if address is None or invited is None or clips is None:
            raise UserError(f"{site} is no site yet: give the coordinator's address, --invite and --clips")
        folder = SiteFolder.create(site, invited, address, fetch_authority(address, invited))
    with folder.alone():
        if invited is not None:
            folder.ask_anew(invited)
        if folder.has_left:
            raise RunError(f"{site} has left its federation; with another code it comes back (--invite)")
        given = {"address": address, "clips": clips and str(clips.resolve()), "speech": speech}
        folder.remember(**{name: value for name, value in given.items() if value})
        agreed = keep_policy(policy, folder.policy)
        if folder.policy.exists():
            tell(f"policy: {folder.policy}")
        sources = [] if folder.shards.exists() else clips_in(folder.clips, folder.name)
        try:
            line = Connection(folder.address, folder.authority, folder.name, folder.key, tell)
            _take_part(folder, line, agreed, sources, once)
        except KeyboardInterrupt:
            print(f"stopped; `fedtalk join --site {site}` goes on", file=sys.stderr)


def fetch(
    address: Annotated[str, typer.Argument(help="The coordinator, as https://HOST:8443.")],
    token: Annotated[
        str, typer.Option(envvar="FEDTALK_TOKEN", help="What `fedtalk authority token` printed; a secret.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Fetch the model that a federation of sites released, without being one of them.

    Example: `fedtalk fetch https://fed.example.org:8443 --token TOKEN --out models/federation`
    """
    from fedtalk_ray.enrolment.token import Token
    from fedtalk_ray.sites.fetching import fetch_released

    place = fetch_released(address, Token.parse(token), out, overwrite, tell)
    print(f"model: {place}; it speaks by: fedtalk generate --run {place} ...")


def _take_part(
    folder: "SiteFolder",
    line: "Connection",
    agreed: "Policy",
    sources: "list[ClipSource]",
    once: bool,
) -> None:
    """Becomes a member, prepares the clips where they are not, and takes part in one run after another."""
    from fedtalk_ray.sites.site import Site

    here = Site(folder, line, agreed, tell)
    here.become_member()
    offer = here.offered()
    if sources and not offer.refused:
        import ray

        from fedtalk_ray.actors.connection import connect
        from fedtalk_ray.sites.clips import prepare_clips

        connect("local")
        count = prepare_clips(sources, folder.shards, offer.conditions, folder.speech)
        tell(f"{count} clips prepared")
        ray.shutdown()
    here.take_part(offer, once)
    while not once:
        Site(folder, line, agreed, tell).take_part(here.offered())


@app.command()
def status(site: SitePlace) -> None:
    """Who the site is, what it spent over all runs, and which models it has.

    Example: `fedtalk site status site`
    """
    from fedtalk_ray.enrolment.membership import open_membership
    from fedtalk_ray.sites.folder import SiteFolder

    folder = SiteFolder(site).check()
    key = "has left, with no key" if folder.has_left else f"key {folder.key.public.hex()[:16]}..."
    print(f"{folder.name} at {folder.address}, {key}")
    found = open_membership(folder.members.read_bytes(), folder.authority_key) if folder.members.exists() else None
    member = found and found.member(folder.name)
    print(f"member until {member.until}, list number {found.version}" if found and member else "not a member")
    spent = folder.rounds_spent()
    for run in folder.runs():
        name = run.path.name
        rounds = spent.get(name, 0)
        model = f"model of round {run.released_round()}: {run.path}" if run.has_model() else "no model yet"
        print(f"run {name[:8]}: {rounds} rounds, {model}")
    print(f"ledger: fedtalk site ledger {site}" if spent else "nothing was spent yet")


@app.command()
def ledger(site: SitePlace) -> None:
    """What the site has spent over all runs, and what is left of its policy's epsilon and rounds.

    Example: `fedtalk site ledger site`
    """
    from fedtalk_ray.commands.privacy import tell_of_ledger
    from fedtalk_ray.sites.folder import SiteFolder
    from fedtalk_ray.sites.policy import load_policy

    folder = SiteFolder(site).check()
    agreed = load_policy(folder.policy if folder.policy.exists() else None)
    if folder.ledger.exists():
        tell_of_ledger(folder.ledger, agreed.epsilon, agreed.delta, agreed.rounds)
    else:
        print("nothing was spent yet")


@app.command()
def leave(
    site: SitePlace,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Leave the federation: remove the site's key, prepared clips and fetched models. Ledger, policy and released
    models stay, and so do the clips themselves.

    Example: `fedtalk site leave site`
    """
    from fedtalk_ray.sites.folder import SiteFolder

    folder = SiteFolder(site).check()
    if not yes:
        typer.confirm(f"Remove the key, prepared clips and fetched models of {folder.name}?", abort=True)
    with folder.alone():
        folder.leave()
    print(f"{folder.name} has left, and nobody can act for it any more. What it gave to rounds is in their models")
    print(f"its name stays on the list until the authority takes it off: fedtalk authority revoke AUTH {folder.name}")


@app.command()
def personalize(
    site: SitePlace,
    run: Annotated[
        str | None, typer.Option(help="Which run's model, by the beginning of its name; else the newest.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps on the adapter.")] = 150,
) -> None:
    """Train the site's own identity adapter on its clips, beside a run's released model. It stays here.

    Example: `fedtalk site personalize site`
    """
    from fedtalk_ray.sites.folder import SiteFolder

    folder = SiteFolder(site).check()
    able = [found for found in folder.runs() if found.has_model() and found.path.name.startswith(run or "")]
    if not able:
        wanted = "any run" if run is None else f"a run {run}"
        raise RunError(f"{site} has no model of {wanted}; `fedtalk join` fetches it when the run is over")

    from fedtalk_ray.progress import ticker
    from fedtalk_ray.shards.people import site_people
    from fedtalk_ray.training.personalize import personalize as run_personalize

    chosen = max(able, key=lambda found: found.pipeline.stat().st_mtime)
    people = site_people(folder.shards, folder.name)
    with ticker(steps, "personalize") as tick:
        result = run_personalize(chosen.path, folder.name, steps, lambda _: tick(), people=people)
    print(f"held-out loss of {folder.name}: {result.loss_before:.4f} before, {result.loss_after:.4f} after")
    print(f"identity adapter: {result.folder}")
    print(f"it speaks by: fedtalk generate --run {chosen.path} --client {folder.name} ...")
