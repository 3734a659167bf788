"""`fedtalk status`: what a cluster knows of the runs on it, from Ray's state API and from the slots themselves.

Slots answer on a thread of their own, so they say which round and client they are at while they train.
"""

from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.state import list_actors, list_nodes
from ray.util.state.exception import RayStateApiException

from fedtalk_ray.actors.connection import run_label
from fedtalk_ray.actors.ray_errors import first_line
from fedtalk_ray.actors.slot import SlotProcess
from fedtalk_ray.errors import ClusterError
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.privacy.publication import simulation
from fedtalk_ray.runs.folder import RunFolder

SLOT, SERVER = SlotProcess.__name__, ParameterServer.__name__
ANSWER_S = 5.0
"""Seconds that slots have to say what they are at; one that is silent is shown as such."""
API_S = 20
ENDED = ("killed by `ray.kill`", "owner has exited", "job finished", "all references to the actor were removed")
"""What Ray says of actors whose run ended, or let them go."""
MOST = 10_000
"""Actors and nodes that Ray's state API lists at most."""


@dataclass
class ActorLine:
    """An actor of a run. state: Ray's word. doing: its own, or why it is not up."""

    name: str
    kind: str
    state: str
    node: str
    pid: int
    doing: str


@dataclass
class ClusterStatus:
    """nodes: a line each. actors: those alive or on their way, slots first. dead: actors of runs that died."""

    nodes: list[str] = field(default_factory=list)
    actors: list[ActorLine] = field(default_factory=list)
    dead: int = 0
    last_death: str = ""


def cluster_status(run: Path | None = None) -> ClusterStatus:
    """The status of the cluster that this process is connected to. run: whose actors alone are told of.

    Raises `ClusterError` where the state API does not answer; it belongs to the dashboard.
    """
    # Without an address the state API looks for a cluster of its own on this machine.
    where: dict[str, Any] = {"address": ray.get_runtime_context().gcs_address, "limit": MOST, "timeout": API_S}
    try:
        nodes = list_nodes(**where)
        actors = [
            actor
            for kind in (SLOT, SERVER)
            for actor in list_actors(filters=[("class_name", "=", kind)], detail=True, **where)
        ]
    except (RayStateApiException, RayError, ConnectionError) as error:
        raise ClusterError(
            f"Ray's state API does not answer ({first_line(error)}); start the head with its dashboard "
            "(--include-dashboard=true)"
        ) from error
    if run is not None:
        actors = [actor for actor in actors if (actor.name or "").startswith(f"{run_label(run)}.")]
    found = ClusterStatus([_node_line(node) for node in nodes])
    addresses = {node.node_id: node.node_ip for node in nodes}
    alive = [actor for actor in actors if actor.state == "ALIVE"]
    answers = _ask([actor for actor in alive if actor.class_name == SLOT])
    for actor in actors:
        if actor.state == "DEAD":
            # A run that ends kills its own slots: that is no death to tell of.
            if not _killed_by_its_run(actor):
                found.dead += 1
                found.last_death = f"{actor.name}: {_cause(actor)}"
            continue
        doing = answers.get(actor.actor_id, "") if actor.state == "ALIVE" else _why_not_up(actor)
        node = addresses.get(actor.node_id, "-")
        found.actors.append(ActorLine(actor.name, actor.class_name, actor.state, node, actor.pid or 0, doing))
    return found


def status_text(found: ClusterStatus) -> str:
    """What people read."""
    lines = [f"nodes: {len(found.nodes)}", *(f"  {line}" for line in found.nodes)]
    for kind, title in ((SLOT, "slots"), (SERVER, "parameter servers")):
        rows = sorted((row for row in found.actors if row.kind == kind), key=lambda row: row.name)
        lines.append(f"{title}: {len(rows)}")
        width = max((len(row.name) for row in rows), default=0)
        lines += [
            f"  {row.name:<{width}}  {row.state.lower()}  {row.node} pid {row.pid}"
            + (f"  {row.doing}" if row.doing else "")
            for row in rows
        ]
    if not found.actors:
        lines.append("nothing is at work here")
    if found.dead:
        lines.append(f"died: {found.dead}, the last {found.last_death}")
    return "\n".join(lines)


def run_text(run: Path) -> str:
    """One line on how far a run is, from its folder. Raises `RunError` for a folder that is no run's."""
    folder = RunFolder(run)
    config, records = folder.config(), folder.whole_records()
    if not records:
        return f"run {run}: no round of {config.all_rounds} finished yet"
    last = records[-1]
    losses = [record["held_out_loss"] for record in records if "held_out_loss" in record]
    phase = f" (phase {last['phase']})" if len(config.phases) > 1 and "phase" in last else ""
    parts = [f"run {run}: round {last['round']} of {config.all_rounds}{phase}"]
    if "seconds" in last:
        parts.append(f"{last['seconds']:g} s the last")
    if losses:
        parts.append(f"held-out loss {losses[-1]:.4f}")
    if "epsilon" in last:
        server = f" (server view {last['epsilon_server']:.3f})" if "epsilon_server" in last else ""
        parts.append(f"epsilon {last['epsilon']:.3f}{server}{simulation(config.privacy, '; ')}")
    if cut := sum(bool(record.get("interrupted")) for record in records):
        parts.append(f"{cut} interrupted")
    if "aborted" in last:
        parts.append(f"the last round was given up: {last['aborted']}")
    return ", ".join(parts)


def _ask(slots: list[Any]) -> dict[str, str]:
    """actor id -> what the slot says it is at."""
    calls = {}
    for slot in slots:
        try:
            actor = ray.get_actor(slot.name, namespace=slot.ray_namespace)
        except ValueError:
            continue  # it died since it was listed
        calls[actor.doing.remote()] = slot.actor_id
    if not calls:
        return {}
    deadline = monotonic() + ANSWER_S
    done, silent = ray.wait([*calls], num_returns=len(calls), timeout=ANSWER_S)
    activity = {}
    for call in done:
        try:
            method, work = ray.get(call, timeout=max(0.0, deadline - monotonic()) + 1)
        except RayError as error:
            activity[calls[call]] = first_line(error)
            continue
        activity[calls[call]] = f"{method}: {work}" if work else method or "idle"
    return activity | {
        calls[call]: f"has not answered for {ANSWER_S:g} s; py-spy dump --pid may tell why" for call in silent
    }


def _node_line(node: Any) -> str:
    total = node.resources_total or {}
    has = [f"{total[name]:g} {name}" for name in ("CPU", "GPU") if total.get(name)]
    if total.get("memory"):
        has.append(f"{total['memory'] / 2**30:.0f} GiB")
    return f"{node.node_ip}  {node.state.lower()}  {', '.join(has)}" + ("  head" if node.is_head_node else "")


def _why_not_up(actor: Any) -> str:
    if actor.state in ("PENDING_CREATION", "DEPENDENCIES_UNREADY"):
        wanted = actor.required_resources or {}
        free = ray.available_resources()
        short = [
            f"{name} {wanted[name]:g} of {free.get(name, 0):g} free"
            for name in wanted
            if free.get(name, 0) < wanted[name]
        ]
        # Every slot is sent to a node by name, so room elsewhere is of no use to it.
        room = f", or waits for room on its node ({_amounts(wanted)})" if wanted else ""
        return f"waits for {', '.join(short)}" if short else f"its process is starting{room}"
    return "comes back from its checkpoint" if actor.state == "RESTARTING" else ""


def _amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _killed_by_its_run(actor: Any) -> bool:
    return any(reason in _cause(actor) for reason in ENDED)


def _cause(actor: Any) -> str:
    context = (actor.death_cause or {}).get("actor_died_error_context", {})
    return first_line(context.get("error_message") or "of an unknown cause")
