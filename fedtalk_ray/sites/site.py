"""One site: a process on somebody's own machine that calls out, trains on her clips, and answers the secure protocol.

What leaves it are replies (`messages.Reply`): the protocol's signed frames, or one line about the protocol or its
policy. Everything private is done by the very code that works in a slot (`actors.client`), over this site's folder.
A site that was killed takes no further part in the exchange that it was in; its record on disk sees to that.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.config import parse_config, save_config
from fedtalk_ray.coordinator.gate import RELEASED
from fedtalk_ray.coordinator.offer import conditions_of, difference
from fedtalk_ray.coordinator.served import safe_name
from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.errors import ConfigError, RunError, UserError
from fedtalk_ray.federation.roster import found_federation, roster_of
from fedtalk_ray.messages import Offer, Order, Part, Plan, Reply
from fedtalk_ray.model.embedded import EMBEDDED
from fedtalk_ray.outputs import new_folder
from fedtalk_ray.privacy.keys import digest
from fedtalk_ray.privacy.protocol import STAGES, Aborted, Code, Rejected
from fedtalk_ray.privacy.secure_client import open_plan
from fedtalk_ray.privacy.wire import MalformedMessage, decode, encode
from fedtalk_ray.recipe import PhaseName
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import site_people
from fedtalk_ray.sites.connection import Connection, ConnectionRefused
from fedtalk_ray.sites.folder import SiteFolder
from fedtalk_ray.sites.policy import Policy, configuration_name

TELLS_OF_CLIPS = frozenset({Code.NOT_FINITE, Code.NOTHING_TO_GIVE, Code.RECORD_DAMAGED})
"""Why a client has no update, where that says something of its clips or its disk: the coordinator hears that it cannot
go on, the site's own log the rest."""

WAIT_S = 5.0
"""Seconds between two looks at what has not changed yet."""


@dataclass
class Site:
    """One site at work. tell: hears each line that its owner should read."""

    folder: SiteFolder
    connection: Connection
    policy: Policy
    tell: Callable[[str], None] = print
    wait_s: float = WAIT_S
    _replies: dict[tuple[int, str], bytes] = field(default_factory=dict)
    _slot: ClientSlot | None = None
    _phase: PhaseName | None = None
    _refused: str = ""

    def become_member(self) -> None:
        """Sends the request for membership and waits until the authority has signed it. Raises `EnrolmentError` for
        who was taken off the list."""
        told = False
        while True:
            try:
                found = self.connection.get("/v1/members")
            except ConnectionRefused as error:
                if "revoked" in error.said or "ran out" in error.said:
                    raise EnrolmentError(f"{self.folder.name} is no member any more: {error.said}") from error
                if not told:
                    self.connection.ask_for_membership(self.folder.request)
                    key = self.folder.key.public.hex()[:16]
                    self.tell(f"{self.folder.name} (key {key}...) waits for the authority: `fedtalk authority sign`")
                    told = True
                sleep(self.wait_s)
                continue
            assert found is not None
            membership = self.folder.take_members(found)
            self.tell(f"{self.folder.name} is one of {len(membership.members)} members")
            return

    def offered(self) -> Offer:
        """What the run is about, as soon as there is one."""
        told = False
        while (found := self.connection.get("/v1/offer")) is None:
            if not told:
                self.tell("the coordinator has not begun a run yet; waiting")
                told = True
            sleep(self.wait_s)
        return decode(Offer, found)

    def take_part(self, offer: Offer, once: bool = False) -> None:
        """Answers whatever the run asks, until it is over (once), or for ever.

        Raises `UserError` for what its owner must mend.
        """
        config = self._agree(offer)
        while True:
            try:
                found = self.connection.post("/v1/next", b"")
                order = None if found is None else decode(Order, found)
            except MalformedMessage as error:
                raise EnrolmentError(f"what the coordinator asks cannot be read ({error})") from error
            if order is None:
                continue
            if order.stage == "over":
                self._fetch_released(offer, order)
                if once:
                    return
                sleep(self.wait_s)
                continue
            if order.stage == "train" and not self.policy.at_this_hour():
                sleep(self.wait_s)
                continue
            self._reply(order, config)

    def _reply(self, order: Order, config: TrainConfig) -> None:
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

    def _answer(self, order: Order, config: TrainConfig) -> Reply:
        if self._refused:
            return Reply(f"{Code.NOT_AGREED}: {self._refused}"[:200], b"")
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
        except (UserError, OSError) as error:
            self.tell(f"{order.stage} of exchange {order.exchange} is not answered: {error}")
            return Reply(Code.CANNOT_GO_ON, b"")

    def _train(self, order: Order, config: TrainConfig) -> Reply:
        run = self._run(config)
        newest = self.connection.get("/v1/members")
        assert newest is not None
        self.folder.take_members(newest)
        found_federation(run, run.path.name, self.folder.authority_key, newest)
        # Who signed it is looked at before anything in it is believed.
        plan: Plan = open_plan(order.frame, *roster_of(run).read())
        if not 1 <= plan.round <= config.all_rounds:
            raise Aborted(Code.NOT_PINNED, f"round {plan.round} is none of this run")
        phase = config.phase_at(plan.round).name
        vectors = {part.name: self._vector(part, config) for part in order.parts}
        shared = vectors.pop("shared", np.zeros(0, np.float32))
        if self._slot is None:
            self.tell("loading the model")
            people = partial(_people, name=self.folder.name)
            self._slot = ClientSlot(config, people)
            self._slot.start()
            self._phase = config.phases[0]
        if phase != self._phase:
            self._slot.enter(phase, {name: vectors[name] for name in config.phases if name in vectors})
            self._phase = phase
        self.tell(f"round {plan.round} ({phase}), exchange {plan.exchange}: one of {len(plan.cohort)}")
        answers = self._slot.train([self.folder.name], shared, order.frame)
        return Reply("", b"") if answers.clients else Reply(_told(answers.refused), b"")

    def _agree(self, offer: Offer) -> TrainConfig:
        """The run's settings with this site's own places and agreement. Raises `UserError` where it cannot be taken
        part in; what its policy refuses is said to the coordinator at each round."""
        name, folder = self.folder.name, self.folder
        run = folder.run(offer.run)
        try:
            tree: dict[str, Any] = json.loads(offer.config)
            conditions = json.loads(offer.conditions)
        except ValueError as error:
            raise ConfigError(f"the coordinator's offer cannot be read ({error})") from error
        model = digest(*(part.digest for part in offer.start)).hex()[:16] if offer.start else str(tree["pretrained"])
        own = {"run": str(run.path), "shards": str(folder.shards), "address": "local", "debug": False}
        agreement = self.policy.agreement(folder.ledgers).model_dump()
        config = parse_config(tree | own | {"agreement": agreement}, "the coordinator's offer")
        self.tell(f"run {offer.run[:8]}: configuration {configuration_name(config)}, model {model}")
        self._refused = self.policy.refusal(config, model)
        if self._refused:
            self.tell(f"not taken part in: {self._refused}")
            return config
        if wrong := difference(conditions_of(load_manifest(folder.shards)), conditions):
            raise RunError(f"the clips of {name} in {folder.shards} do not fit the run: {wrong}; prepare them again")
        if offer.start:
            config = config.model_copy(update={"pretrained": str(self._fetch_model(offer.start, model))})
            save_config(config, run.config_file)
        elif config.pretrained not in (None, EMBEDDED):
            raise ConfigError(f"the coordinator names the model {config.pretrained!r} and does not give it")
        return config

    def _run(self, config: TrainConfig) -> Any:
        return self.folder.run(Path(config.run).name)

    def _vector(self, part: Part, config: TrainConfig) -> np.ndarray:
        """A float32 vector that the coordinator serves."""
        place = self._run(config).served / part.digest.hex()
        self.connection.fetch(part, place)
        try:
            return np.frombuffer(place.read_bytes(), np.float32)
        finally:
            if part.name == "shared":
                place.unlink()

    def _fetch_model(self, parts: tuple[Part, ...], name: str) -> Path:
        """The model that a run starts from, in a folder of its own."""
        place = self.folder.models / name
        if not place.exists():
            self.tell(f"fetching the model, {sum(part.size for part in parts) / 2**20:.1f} MiB")
        for part in parts:
            self.connection.fetch(part, place / safe_name(part.name))
        return place

    def _fetch_released(self, offer: Offer, order: Order) -> None:
        """The model that the run ended with, into the run's folder."""
        run = self.folder.run(offer.run)
        if run.has_model():
            return
        with new_folder(run.path / "released", overwrite=True) as place:
            for part in order.parts:
                self.connection.fetch(part, place / safe_name(part.name))
            for name in reversed(RELEASED):
                if (place / name).is_dir():
                    (place / name).rename(run.path / name)
        (run.path / "released").rmdir()
        self.tell(f"the run is over; its model: {run.path}")


def _people(config: TrainConfig, name: str) -> Any:
    return site_people(config.shards, name)


def _told(refused: dict[str, int]) -> str:
    """What the coordinator is told of why."""
    code = next(iter(refused), str(Code.CANNOT_GO_ON))
    return str(Code.CANNOT_GO_ON) if code in TELLS_OF_CLIPS else str(code)
