"""The clients' sides of the secure protocol for all clients that one slot stands for.

Every client keeps its secrets as a device of its own would: its signing key and what it has seen in its own folder,
this round's keys and its update in a `SecureClient` object here. Nothing of it is put into Ray's object store; what
`answer` returns is signed, masked or encrypted.

What is kept (`runs.client_folder`): the signing key, what was answered (`privacy.client_record`) and what was spent
(`privacy.client_ledger`), over all runs where `agreement.ledgers` names a folder for it.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from fedtalk_ray.errors import UserError
from fedtalk_ray.federation.roster import Pin, roster_of
from fedtalk_ray.federation.secure_aggregator import clip_norm_of, limits_of, make_codec
from fedtalk_ray.messages import Answers, Plan
from fedtalk_ray.privacy.client_ledger import Agreement, ClientLedger
from fedtalk_ray.privacy.client_record import ClientRecord, answered_may_go_on
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.noise import system_rng
from fedtalk_ray.privacy.protocol import STAGES, Aborted, Code
from fedtalk_ray.privacy.secure_client import SecureClient, check_plan, open_plan
from fedtalk_ray.recipe import PhaseName
from fedtalk_ray.runs.checkpoints import config_digest
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig


class SecureClients:
    """One slot's clients in the current exchange."""

    def __init__(self, config: TrainConfig, phase: PhaseName, dimension: int, backbone: bytes) -> None:
        """phase: whose rounds these are. backbone: SHA-256 of what this slot's model has frozen."""
        self._config, self._phase, self.backbone = config, phase, backbone
        self._codec = make_codec(config, dimension, phase)
        self._digest = config_digest(config)
        self._adaptive = config.privacy_in(phase).clipping == "adaptive"
        # Noise of a simulated cohort is too little for the few real clients: in a client's ledger it counts as none.
        self._charged = None if config.privacy.simulated_cohort else self._codec.noise
        agreed = config.agreement
        self._agreement = Agreement(
            agreed.epsilon, agreed.rounds, agreed.delta, rounds_of_a_run=config.privacy.participation_cap
        )
        self._sides: dict[str, SecureClient] = {}
        self._updates: dict[str, tuple[np.ndarray, float]] = {}
        self._plan: Plan | None = None
        self._frame = b""
        self._left_out: set[str] = set()
        self._clip_norm: float | None = None
        self._run = RunFolder(Path(config.run))
        self._file = roster_of(self._run)

    def enrol(self, clients: list[str]) -> dict[str, bytes]:
        """These clients' public keys, of those who have one; makes the secret ones at the first call."""
        keys = {}
        for client in clients:
            try:
                place = self._run.client(client).signing_key
                if not place.exists():
                    self._record(client).create()
                keys[client] = SigningKey.kept_in(place).public
            except (UserError, OSError) as error:
                print(f"{client} is not enrolled: {error}", flush=True)
        return keys

    def open_round(self, frame: bytes) -> Plan:
        """The server's plan, and an end to whatever another one was about. Raises `Aborted`.

        The plan's number is the one that everything goes by: the phase, the clients' random choices, and what of them
        was answered before. A round of statistics, which are the same at every call, is so asked for once in a run.
        """
        if frame == self._frame and self._plan is not None:
            # Another chunk of the same exchange.
            return self._plan
        self._sides, self._updates, self._plan = {}, {}, None
        roster, run = self._file.read()
        plan = open_plan(frame, roster, run)
        if not 1 <= plan.round <= self._config.all_rounds or self._config.phase_at(plan.round).name != self._phase:
            raise Aborted(Code.NOT_PINNED, f"round {plan.round} is none of the phase {self._phase}")
        if new := set(plan.left_out) - self._left_out:
            print(f"the server leaves out, for a fault that it has proof of: {', '.join(sorted(new))}", flush=True)
        self._left_out = set(plan.left_out)
        if not self._adaptive:
            self._clip_norm = clip_norm_of(self._config, plan.round, self._codec.dimension)
        self._roster, self._plan, self._frame = roster, plan, frame
        return plan

    def join(self, client: str, shared: np.ndarray) -> None:
        """Lets a client look at the plan before it trains. Raises `Aborted` when it will not take part."""
        plan, record = self._plan, self._record(client)
        assert plan is not None
        answered = record.read()
        if answered.roster is not None and not self._file.keeps(Pin(*answered.roster)):
            raise Aborted(Code.NOT_PINNED, "the roster does not begin with what this client saw before")
        check_plan(
            plan,
            client,
            last_exchange=answered.exchange,
            backbone=self.backbone,
            shared=hashlib.sha256(np.ascontiguousarray(shared).tobytes()).digest(),
            config=self._digest,
            clip_norm=self._clip_norm,
        )
        answered_may_go_on(answered, plan.round)
        # Looked at before it trains; again, with the charge, before anything of it leaves.
        self._ledger(client).with_one_more(plan.run, plan.round, answered.charged, self._charged, self._agreement)
        key = SigningKey.read_from(self._run.client(client).signing_key)
        record.train(plan.round, plan.shared.hex())
        self._sides[client] = SecureClient(client, key, self._roster, plan, limits_of(self._config.privacy))

    def offer(self, client: str, update: np.ndarray, weight: float) -> None:
        """What the client will add to the sum. update: float32 [D]. weight: omega_k, the client's own secret."""
        self._updates[client] = (update, weight)

    def offer_nothing(self, client: str) -> bool:
        """With noise: the client, who has no usable update, adds zeros, and so does not tell that; else False."""
        if self._codec.noise is None:
            return False
        self.offer(client, np.zeros(self._codec.dimension, np.float32), 0.0)
        return True

    def answer(self, stage: str, frames: Mapping[str, bytes]) -> tuple[Answers, list[np.ndarray]]:
        """Every client's signed answer to one stage, as uint8 arrays, which Ray does not copy.

        frames: what the server sent to each. A client that finds something wrong, or whose disk fails it, is silent
        from then on. Raises `ValueError` for what is no stage.
        """
        if stage not in STAGES:
            raise ValueError(f"{stage!r} is no stage of the protocol")
        if STAGES.index(stage) > STAGES.index("mask"):
            # Of who dropped out; nobody sends an update any more.
            self._updates = {}
        answered, refused, payload = [], Counter[str](), []
        for client in sorted(frames.keys() & self._sides.keys()):
            try:
                frame = self._answer(client, stage, frames[client])
            except (Aborted, UserError, OSError) as error:
                del self._sides[client]
                self._updates.pop(client, None)
                code = error.code if isinstance(error, Aborted) else Code.CANNOT_GO_ON
                refused[str(code)] += 1
                if code == Code.CANNOT_GO_ON:
                    # For the slot's log alone.
                    print(f"{client} takes no further part: {error}", flush=True)
                continue
            answered.append(client)
            payload.append(np.frombuffer(frame, np.uint8))
        return Answers(tuple(answered), dict(refused)), payload

    def _answer(self, client: str, stage: str, frame: bytes) -> bytes:
        side, plan = self._sides[client], self._plan
        assert plan is not None
        if stage == "advertise":
            # Until now another slot may have taken the client up.
            pin = self._file.pin()
            self._record(client).begin(plan.exchange, (pin.length, pin.digest))
            return side.advertise()
        if stage != "mask":
            return bytes(getattr(side, stage)(frame))
        update, weight = self._updates.pop(client, (None, 0.0))
        if update is None:
            raise Aborted(Code.WRONG_STAGE, "no update is there to be masked")
        scale = plan.weight_scale if self._codec.noise is None else 1.0
        vector = self._codec.encode(update, scale * weight, plan.clip_norm, len(plan.cohort), system_rng())
        masked = side.mask(frame, vector)
        charge = partial(
            self._ledger(client).charge, plan.run, plan.round, noise=self._charged, agreement=self._agreement
        )
        self._record(client).mask(plan.round, charge)
        return masked

    def _ledger(self, client: str) -> ClientLedger:
        folder = self._config.agreement.ledgers
        if folder is None:
            return ClientLedger(self._run.client(client).ledger, one_run=True)
        return ClientLedger(Path(folder) / f"{client}.json")

    def _record(self, client: str) -> ClientRecord:
        return ClientRecord(self._run.client(client).protocol_state)
