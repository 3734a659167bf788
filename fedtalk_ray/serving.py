"""A federation of sites: the coordinator's side, from an open port to a model that sites can fetch.

The rounds are those of `rounds.federate`; who is asked are members of the authority's list, through the gate.
"""

from collections.abc import Callable
from pathlib import Path
from time import sleep

from fedtalk_ray.actors.connection import connect
from fedtalk_ray.actors.site_pool import Coordinator, Entrance, SitePool
from fedtalk_ray.enrolment.membership import open_membership
from fedtalk_ray.errors import ConfigError
from fedtalk_ray.federation.secure_aggregator import limits_of
from fedtalk_ray.rounds import federate
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.people import only_watched

_LOOK_S = 1.0
"""Seconds between two looks at the list of members."""


def serve(
    config: TrainConfig,
    coordinator: Coordinator,
    resume: bool = False,
    tell: Callable[[str], None] = print,
    stay: Callable[[int, Entrance], None] = lambda sites, entrance: None,
) -> Path:
    """Runs one federated training over sites; returns the run's folder. It begins when as many are members as a sum
    needs; who becomes one later is asked after a resume.

    stay: called when the run is over, with the number of sites on line and where they come in, for as long as they may
    fetch its model.
    Raises `errors.UserError` with one line for whatever the user can mend.
    """
    coordinator.files.check()
    if config.aggregation != "secure":
        raise ConfigError("aggregation: sites take part in secure sums alone, and it is plain")
    if config.privacy.hides_cohorts:
        raise ConfigError(
            "privacy.view release needs cohorts that nobody is told of, and sites that are away show; hold view server"
        )
    if config.strategy.groups > 1:
        raise ConfigError("strategy.groups is of slots; sites are asked in one exchange a round")
    watched = only_watched(config).manifest
    connect(config.address, dashboard=True, debug=config.debug)
    entrance = coordinator.open(config)
    try:
        tell(f"listening at port {entrance.doors.port}; requests for membership wait in {coordinator.files.requests}")
        fewest, told = limits_of(config.privacy).floor, -1
        while True:
            # Of the gate, which goes by the list before while a new one is being copied.
            members = entrance.members()
            clients = sorted(open_membership(members, coordinator.files.authority_key).roster().clients)
            if len(clients) >= fewest:
                break
            if len(clients) != told:
                tell(f"{len(clients)} members, and a sum needs {fewest}; waiting for the authority's list")
                told = len(clients)
            sleep(_LOOK_S)
        tell(f"{len(clients)} members")
        path = federate(
            config,
            clients,
            watched.unseen(),
            lambda settled: SitePool(settled, coordinator, entrance, watched, members),
            resume,
        )
        stay(entrance.ask("release", str(path)), entrance)
        return path
    finally:
        entrance.close()
