"""One site: a process on somebody's own machine that calls out, trains on her clips, and answers the secure protocol.

What leaves it are replies (`messages.Reply`): the protocol's signed frames, or one line about the protocol or its
policy. Everything private is done by the very code that works in a slot (`actors.client`), over this site's folder.
A site that was killed takes no further part in the exchange that it was in; its record on disk sees to that.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import TypeVar

import numpy as np

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.config import save_config
from fedtalk_ray.coordinator.offer import LONGEST_REFUSAL, RELEASED, conditions_of, difference, model_parts, run_name
from fedtalk_ray.coordinator.served import safe_name
from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.roster import found_federation, roster_of
from fedtalk_ray.messages import Offer, Order, Part, Plan, Reply
from fedtalk_ray.outputs import new_folder
from fedtalk_ray.privacy.protocol import STAGES, Aborted, Code, Rejected
from fedtalk_ray.privacy.secure_client import open_plan
from fedtalk_ray.privacy.wire import MalformedMessage, decode, encode
from fedtalk_ray.recipe import PhaseName
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import People, site_people
from fedtalk_ray.sites.connection import Connection, ConnectionRefused
from fedtalk_ray.sites.folder import SiteFolder
from fedtalk_ray.sites.offered import OfferedRun, read_offer
from fedtalk_ray.sites.policy import Policy

Message = TypeVar("Message")

TELLS_OF_CLIPS = frozenset({Code.NOT_FINITE, Code.NOTHING_TO_GIVE, Code.RECORD_DAMAGED})
"""Why a client has no update, where that says something of its clips or its disk: the coordinator hears that it cannot
go on, the site's own log the rest."""

WAIT_S = 5.0
"""Seconds between two looks at what has not changed yet."""


@dataclass
class Site:
    """One site at work. tell: hears each line that its owner should read. make_slot: of what trains and answers, given
    the run's configuration and what opens the site's clips."""

    folder: SiteFolder
    connection: Connection
    policy: Policy
    tell: Callable[[str], None] = print
    wait_s: float = WAIT_S
    make_slot: Callable[[TrainConfig, Callable[[TrainConfig], People]], ClientSlot] = ClientSlot
    _replies: dict[tuple[int, str], bytes] = field(default_factory=dict)
    _slot: ClientSlot | None = None
    _phase: PhaseName | None = None
    _refused: str = ""

    def become_member(self) -> None:
        """Sends the request for membership and waits until the authority has signed it. Raises `EnrolmentError` for
        who was taken off the list, and did not ask anew."""
        told = False
        while True:
            try:
                found = self.connection.get("/v1/members")
            except ConnectionRefused as error:
                if error.status == 403 and not self.folder.waits:
                    raise EnrolmentError(f"{self.folder.name} is no member any more: {error.said}") from error
                if not told:
                    said = self.connection.ask_for_membership(self.folder.request)
                    key = self.folder.key.public.hex()[:16]
                    self.tell(f"{self.folder.name} (key {key}...) waits for the authority: `fedtalk authority sign`")
                    if said:
                        self.tell(said)
                    told = True
                sleep(self.wait_s)
                continue
            assert found is not None
            membership = self.folder.take_members(found)
            if self.folder.waits:
                self.folder.remember(waits="no")
            self.tell(f"{self.folder.name} is one of {len(membership.members)} members")
            return

    def offered(self) -> OfferedRun:
        """What the run is about, as soon as there is one. Raises `ConfigError` for what cannot be one."""
        told = False
        while (found := self.connection.get("/v1/offer")) is None:
            if not told:
                self.tell("the coordinator has not begun a run yet; waiting")
                told = True
            sleep(self.wait_s)
        offered = read_offer(_read(Offer, found), self.folder, self.policy)
        self.tell(offered.line())
        return offered

    def take_part(self, offered: OfferedRun, once: bool = False) -> None:
        """Answers whatever the run asks, until there is another one; or until it is over (once).

        Raises `UserError` for what its owner must mend.
        """
        config = self._begin(offered)
        while True:
            found = self.connection.post("/v1/next", b"")
            if found is None:
                continue
            order = _read(Order, found)
            if order.stage != "over":
                refused = self._reply(order, config)
                if order.stage == "train" and refused and self._another_run(offered.name):
                    return
                continue
            self._fetch_released(offered.name, order)
            if once or self._another_run(offered.name):
                return
            sleep(self.wait_s)

    def _another_run(self, name: str) -> bool:
        """Whether the coordinator has begun another run than the one that this site is in."""
        found = self.connection.get("/v1/offer")
        return found is not None and run_name(_read(Offer, found)) != name

    def _reply(self, order: Order, config: TrainConfig) -> bool:
        """Replies to an order; whether by a refusal."""
        key = (order.exchange, order.stage)
        if key not in self._replies:
            reply = self._answer(order, config)
            # Once made it is what is sent, however often it is asked for.
            self._replies = {kept: body for kept, body in self._replies.items() if kept[0] == order.exchange}
            self._replies[key] = encode(reply)
        try:
            self.connection.post(f"/v1/replies/{order.exchange}/{order.stage}", self._replies[key])
        except ConnectionRefused as error:
            # Too late, or of a coordinator that forgot the exchange; it goes on without this site.
            self.tell(f"{order.stage} of exchange {order.exchange}: {error.said}")
        return bool(decode(Reply, self._replies[key]).refused)

    def _answer(self, order: Order, config: TrainConfig) -> Reply:
        if self._refused:
            return Reply(f"{Code.NOT_AGREED}: {self._refused}"[:LONGEST_REFUSAL], b"")
        if order.stage == "train" and not self.policy.at_this_hour():
            return Reply(f"{Code.NOT_AGREED}: outside the hours of this site", b"")
        try:
            if order.stage == "train":
                return self._train(order, config)
            if self._slot is None or order.stage not in STAGES:
                return Reply(Code.WRONG_STAGE, b"")
            answers, payload = self._slot.answer(order.stage, {self.folder.name: order.frame})
            return Reply("", payload[0].tobytes()) if payload else Reply(_told(answers.refused), b"")
        except (Aborted, Rejected) as error:
            self.tell(f"{order.stage} of exchange {order.exchange} is not answered: {error}")
            return Reply(_told({error.code: 1}), b"")
        except Exception as error:
            # Whatever it is, the site stays, and begins the next round with a model that is loaded anew.
            self.tell(f"{order.stage} of exchange {order.exchange} is not answered: {type(error).__name__}: {error}")
            self._slot = None
            return Reply(Code.CANNOT_GO_ON, b"")

    def _train(self, order: Order, config: TrainConfig) -> Reply:
        run = self._run(config)
        known = self.folder.members.read_bytes()
        newest = self.connection.get("/v1/members", known)
        if newest is None:
            newest = known
        else:
            self.folder.take_members(newest)
        if not run.federation.exists() or run.members.read_bytes() != newest:
            found_federation(run, run.path.name, b"", self.folder.authority_key, newest)
        # Who signed it is looked at before anything in it is believed.
        plan: Plan = open_plan(order.frame, *roster_of(run).read())
        if not 1 <= plan.round <= config.all_rounds:
            raise Aborted(Code.NOT_PINNED, f"round {plan.round} is none of this run")
        phase = config.phase_at(plan.round).name
        vectors = self._vectors(order.parts, config)
        shared = vectors.pop("shared", np.zeros(0, np.float32))
        if self._slot is None:
            self.tell("loading the model")
            slot = self.make_slot(config, lambda of: site_people(of.shards, self.folder.name))
            slot.start()
            self._slot, self._phase = slot, config.phases[0]
        if phase != self._phase:
            self._slot.enter(phase, {name: vectors[name] for name in config.phases if name in vectors})
            self._phase = phase
        self.tell(f"round {plan.round} ({phase}), exchange {plan.exchange}: one of {len(plan.cohort)}")
        answers = self._slot.train([self.folder.name], shared, order.frame)
        return Reply("", b"") if answers.clients else Reply(_told(answers.refused), b"")

    def _begin(self, offered: OfferedRun) -> TrainConfig:
        """Makes ready for a run: the clips fit, and the model is there. What the policy refuses is said to the
        coordinator at each round. Raises `UserError` where it cannot be made ready."""
        folder, config = self.folder, offered.config
        self._refused = offered.refused
        if offered.refused:
            self.tell(f"not taken part in: {offered.refused}")
            return config
        if wrong := difference(conditions_of(load_manifest(folder.shards)), offered.conditions):
            raise RunError(
                f"the clips of {folder.name} do not fit the run: {wrong}; remove {folder.shards}, and join again"
            )
        if offered.start:
            self._fetch_model(offered.start, folder.models / offered.model)
        save_config(config, folder.run(offered.name).config_file)
        return config

    def _run(self, config: TrainConfig) -> RunFolder:
        return self.folder.run(Path(config.run).name)

    def _vectors(self, parts: tuple[Part, ...], config: TrainConfig) -> dict[str, np.ndarray]:
        """The float32 vectors that the coordinator serves, by name. Nothing else stays on disk."""
        served = self._run(config).served
        if sum(part.size for part in parts) > self.policy.most_download_mb << 20 or len(parts) > len(config.phases) + 1:
            raise EnrolmentError("the coordinator serves more vectors than the run has phases")
        for part in parts:
            self.connection.fetch(part, served / part.digest.hex())
        for old in served.iterdir():
            if old.name not in {part.digest.hex() for part in parts}:
                old.unlink()
        return {part.name: np.fromfile(served / part.digest.hex(), np.float32) for part in parts}

    def _fetch_model(self, parts: tuple[Part, ...], place: Path) -> None:
        """The model that a run starts from, in a folder of its own."""
        if not place.exists():
            self.tell(f"fetching the model, {sum(part.size for part in parts) / 2**20:.1f} MiB")
        for part in parts:
            self.connection.fetch(part, place / safe_name(part.name))

    def _fetch_released(self, name: str, order: Order) -> None:
        """The model that the run ended with, into the run's folder."""
        run = self.folder.run(name)
        if run.has_model():
            return
        with new_folder(run.path / "released", overwrite=True) as place:
            for part in model_parts(order.parts, self.policy.most_download_mb):
                self.connection.fetch(part, place / safe_name(part.name))
        # The pipeline comes last: where it is, all is.
        for inside in reversed(RELEASED):
            if (run.path / "released" / inside).is_dir():
                shutil.rmtree(run.path / inside, ignore_errors=True)
                (run.path / "released" / inside).rename(run.path / inside)
        shutil.rmtree(run.path / "released")
        self.tell(f"the run is over; its model: {run.path}")


def _read(kind: type[Message], data: bytes) -> Message:
    """What the coordinator says. Raises `EnrolmentError` for what is no message of that kind."""
    try:
        return decode(kind, data)
    except MalformedMessage as error:
        raise EnrolmentError(
            f"what the coordinator says cannot be read ({error}); is it of another version?"
        ) from error


def _told(refused: dict[str, int]) -> str:
    """What the coordinator is told of why."""
    code = next(iter(refused), str(Code.CANNOT_GO_ON))
    return str(Code.CANNOT_GO_ON) if code in TELLS_OF_CLIPS else str(code)
