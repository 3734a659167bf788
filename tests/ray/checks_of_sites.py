"""What must hold after a run over sites, whatever happened on the way."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chisquare

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.federation.secure_aggregator import make_codec
from fedtalk_ray.messages import TO_SERVER, MaskedInput, Reply
from fedtalk_ray.privacy.protocol import STAGES, Frame
from fedtalk_ray.privacy.wire import decode
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.people import site_people
from fedtalk_ray.sites.folder import SiteFolder
from fedtalk_ray.training.personalize import personalize
from tests.ray.conftest import parameters
from tests.ray.own_federation import FAKE_CLOCK, PRIVACY, OwnFederation
from tests.ray.private_bytes import private_bytes
from tests.ray.sites_at_work import Beside


def check_sum(
    federation: OwnFederation,
    config: TrainConfig,
    run: RunFolder,
    people: Path,
    sites: list[SiteFolder],
    away: dict[int, str] | None = None,
) -> ClientSlot:
    """Every round moved the model as a bare loop over the same clients moves it from there, to within rounding; every
    site has it, and its own face stays with it. Returns the slot of the bare loop.

    config: with as large a `server.average` as rounds, where there are more than the checkpoints that stay. away: round
    -> who was not heard in it.
    """
    tree = config.model_dump(mode="json") | {"run": str(federation.folder / "bare"), "shards": str(people)}
    slot = ClientSlot(TrainConfig.model_validate(tree | {"aggregation": "plain", "privacy": {}}))
    before = slot.start()
    codec = make_codec(config, len(before))
    # Round by round, each from where the sites stood before it: training makes larger what a round was off by.
    for number in range(1, config.rounds + 1):
        names = [site.name for site in sites if site.name != (away or {}).get(number)]
        _, update = slot.fit(names, number, before)
        assert update is not None
        mean, weights = update.weighted_sum / update.total_weight, update.total_weight / PRIVACY["samples_cap"]
        bound = codec.error_bound(len(names), weights, PRIVACY["clip_norm"])
        assert bound < 0.05 * np.linalg.norm(mean), "a bound this loose would say nothing"
        after = parameters(config, number)
        off = np.linalg.norm(after - (before + mean))
        assert off <= bound, (number, off, bound, np.linalg.norm(mean))
        before = after
    for site in sites:
        (own,) = site.runs()
        assert own.has_model() and own.has_shared_adapter() and own.released_round() == config.rounds
        for file in ("pipeline/model_index.json", "adapters/shared/adapter_model.safetensors"):
            assert (own.path / file).read_bytes() == (run.path / file).read_bytes()
        # What is the site's own stays at the site: the coordinator has no folder of it.
        assert own.clients() == [site.name] and not run.clients()
        assert spent(site) == config.rounds
    # And at its own place it can learn its own face.
    own = sites[0].runs()[0]
    learned = personalize(own.path, sites[0].name, 1, people=site_people(sites[0].shards, sites[0].name))
    assert learned.folder == own.client(sites[0].name).newest_adapter
    assert learned.folder.is_relative_to(sites[0].path) and (learned.folder / "adapter_model.safetensors").exists()
    return slot


def check_wire(slot: ClientSlot, sites: list[SiteFolder], rounds: int, dying: SiteFolder | None = None) -> None:
    """What was sent: the messages of the protocol, of their sizes, nothing private.

    slot: the one of `check_sum`. dying: who was killed on the way, and did not say everything.
    """
    secrets = []
    for site in sites:
        own = slot._config.model_copy(update={"run": str(site.runs()[0].path)})
        secrets += private_bytes(slot, own, [site.name], rounds)
    stages = Counter[str]()
    for site in sites:
        for path, content in requests_of(site):
            assert not [what for what, secret in secrets if secret in content]
            if not path.startswith("replies/"):
                assert not content
                continue
            stage, reply = path.split("/")[2], decode(Reply, content)
            stages[stage] += site is not dying
            assert not reply.refused or site is dying
            if stage == "train" or reply.refused:
                assert not reply.frame
                continue
            frame = decode(Frame, reply.frame)
            assert frame.kind == TO_SERVER[stage].__name__
            message = decode(TO_SERVER[stage], frame.body)
            assert message.client == site.name
            if isinstance(message, MaskedInput):
                assert chisquare(np.bincount(message.vector >> 24, minlength=256)).pvalue > 1e-5
    assert stages == dict.fromkeys(("train", *STAGES), rounds * (len(sites) - (dying is not None)))
    leak = secrets[-1][1]
    assert [what for what, secret in secrets if secret in b"x" + leak]


def check_nothing_twice(sites: list[SiteFolder]) -> None:
    """Of each stage of an exchange a site sent one reply, however often it sent it."""
    for site in sites:
        replies: dict[str, set[bytes]] = {}
        for path, content in requests_of(site):
            if path.startswith("replies/"):
                replies.setdefault(path, set()).add(content)
        assert all(len(bodies) == 1 for bodies in replies.values())


def check_books(sites: list[SiteFolder], history: list[dict[str, Any]]) -> None:
    """No site's ledger says less than it sent, nor all together less than the coordinator counted; and every round has
    the survivors that its own counts say."""
    masked = {site.name: masked_exchanges(site) for site in sites}
    for site in sites:
        # Charged before it is sent: who was killed in between paid for nothing, once.
        assert len(masked[site.name]) <= spent(site) <= len(history)
    assert sum(map(spent, sites)) >= sum(record["counts"].get("mask", 0) for record in history)
    for record in history:
        if "aborted" not in record:
            assert record["survivors"] == record["counts"]["mask"]


def requests_of(site: SiteFolder) -> list[tuple[str, bytes]]:
    """Everything that a site sent: paths and bodies."""
    lines = Beside(site.path).sent.read_text().splitlines()
    return [(path, bytes.fromhex(body)) for path, _, body in (line.partition(" ") for line in lines)]


def masked_exchanges(site: SiteFolder) -> set[int]:
    """In which exchanges the site sent its masked update."""
    return {
        int(path.split("/")[1])
        for path, content in requests_of(site)
        if path.startswith("replies/") and path.endswith("/mask") and not decode(Reply, content).refused
    }


def spent(site: SiteFolder) -> int:
    """The rounds in a site's ledger."""
    return int(json.loads(site.ledger.read_text())["bare"]) if site.ledger.exists() else 0


def check_clock(sites: list[SiteFolder], off: float) -> None:
    """These sites' clocks were so many seconds ahead of this process's, where that can be had at all."""
    for site in sites if FAKE_CLOCK else ():
        beside = Beside(site.path)
        began = float(beside.clock.read_text())
        assert abs(began - beside.clock.stat().st_mtime - off) < 60
