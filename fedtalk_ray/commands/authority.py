"""`fedtalk authority`: who belongs to a federation of sites, decided with a key that the coordinator never has."""

from pathlib import Path
from typing import Annotated

import typer

from fedtalk_ray.errors import UserError

app = typer.Typer(help="Who belongs to a federation: invites, members, the coordinator's certificate.")

Folder = Annotated[Path, typer.Argument(help="The authority's folder. Keep it off the coordinator's machine.")]
Name = Annotated[str, typer.Argument(help="The site's name, its client in rounds.")]
Hosts = Annotated[list[str], typer.Option("--host", help="Name or address by which sites reach it; repeatable.")]


@app.command()
def init(folder: Folder, host: Hosts) -> None:
    """Make an authority, and the folder that its coordinator is given.

    Example: `fedtalk authority init authority --host fed.example.org`
    """
    from fedtalk_ray.enrolment.authority import Authority

    made = Authority.create(folder, host)
    print(f"authority: {folder}; whoever has it decides who belongs")
    print(f"give the coordinator {made.coordinator.folder}, for `fedtalk serve --tls`")


@app.command()
def host(folder: Folder, host: Hosts) -> None:
    """Give the coordinator a new certificate, for other hosts or in place of one that ran out."""
    from fedtalk_ray.enrolment.authority import Authority

    authority = Authority(folder)
    authority.certify(host)
    print(f"give the coordinator {authority.coordinator.tls_certificate} and {authority.coordinator.tls_key}")


@app.command()
def invite(
    folder: Folder,
    name: Name,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the code is taken.")] = 14,
    new_key: Annotated[bool, typer.Option("--new-key", help="For a member who lost the key.")] = False,
) -> None:
    """Print a code with which one site asks for membership, once. Tell it to nobody else.

    Example: `fedtalk authority invite authority s1`
    """
    from fedtalk_ray.enrolment.authority import Authority

    print(Authority(folder).invite(name, days, new_key).code())


@app.command()
def token(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="Whom it is for; a new name each time.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it is taken.")] = 14,
) -> None:
    """Print a token with which somebody who is no site fetches a released model (`fedtalk fetch`).

    Example: `fedtalk authority token authority museum --days 30`
    """
    from fedtalk_ray.enrolment.authority import Authority

    print(Authority(folder).token(name, days).code())


@app.command()
def sign(
    folder: Folder,
    requests: Annotated[
        Path | None,
        typer.Option(help="The coordinator's --tls folder, or a copy of its requests."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long new members belong.")] = 365,
) -> None:
    """Make members of those who used their codes, and sign the list of members for the coordinator.

    Example: `fedtalk authority sign authority --requests requests`
    """
    from fedtalk_ray.enrolment.authority import Authority
    from fedtalk_ray.enrolment.coordinator_files import CoordinatorFiles, waiting_in

    authority = Authority(folder)
    place = authority.coordinator.requests if requests is None else requests
    if requests is not None and not place.is_dir():
        raise UserError(f"--requests {place} is no folder; give the coordinator's --tls folder or its requests")
    inside = CoordinatorFiles(place).requests
    waiting = waiting_in(inside if inside.is_dir() else place)
    if not waiting:
        print(f"no request waits in {place}")
    for decision in authority.sign(waiting, days):
        said = f"refused: {decision.refused}" if decision.refused else f"member, key {decision.key[:16]}..."
        print(f"{decision.name}: {said}")
    found = authority.members()
    print(f"{len(found.members)} members, list number {found.version}: {authority.coordinator.members}")
    if requests is not None:
        print("copy it to the coordinator's --tls folder")


@app.command()
def revoke(folder: Folder, name: Name) -> None:
    """Take a member off the list, and its code with it; or end a token.

    Example: `fedtalk authority revoke authority s1`
    """
    from fedtalk_ray.enrolment.authority import Authority

    authority = Authority(folder)
    authority.revoke(name)
    print(f"{name} belongs no more; copy {authority.coordinator.members} to the coordinator's folder")
