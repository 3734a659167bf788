"""A server that lies to a run's own clients: it signs what it likes, hears whom it likes, and opens what they let it.

Its clients are `SecureClients`, as a slot holds them, with the run's own keys and records on disk.

    lie = Lie(round, config, clients, exchange=1)
    lie.ask()                       everybody answers the open stage, which is closed then
    lie.ask({"s0", "s1"})           the others are not heard any more
    lie.is_open                     whether what they answered gave a sum
"""

import contextlib
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fedtalk_ray.audits.attack import Round, fixed_clip_norm
from fedtalk_ray.federation.roster import RosterFile
from fedtalk_ray.federation.secure_aggregator import limits_of
from fedtalk_ray.messages import Plan, SealedShares
from fedtalk_ray.privacy import protocol
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.protocol import Aborted, Limits, Rejected
from fedtalk_ray.privacy.secure_server import SecureServer
from fedtalk_ray.privacy.update_codec import EXTRA
from fedtalk_ray.runs.checkpoints import config_digest
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.training.secure_clients import SecureClients


@dataclass(frozen=True)
class Lax(Limits):
    """Of a server that is content with whoever is there. shares: as many as it opens a secret with."""

    shares: int = 1

    def threshold(self, cohort: int) -> int:
        return self.shares

    def survivors(self, cohort: int) -> int:
        return 1


class Lie:
    """One exchange, from its plan on. holders: to whom each client dealt shares of its key, itself left out."""

    def __init__(
        self,
        audited: Round,
        config: TrainConfig,
        clients: SecureClients,
        exchange: int,
        round_number: int = 1,
        shares: int | None = None,
    ) -> None:
        """config: as `recorded_exchange.open_run` made it. shares: as many as open a secret, None for as many as
        honest clients deal it for."""
        run, limits, cohort = RunFolder(Path(config.run)), limits_of(config.privacy), sorted(audited.updates)
        key, (roster, name) = SigningKey.kept_in(run.server_key), RosterFile(run.roster).read()
        shared = hashlib.sha256(audited.shared.tobytes()).digest()
        agreed, clip_norm = config_digest(config), fixed_clip_norm(config)
        plan = Plan(name, exchange, round_number, audited.frozen, shared, agreed, clip_norm, tuple(cohort))
        lax = Lax(limits.floor, limits.complete_up_to, shares or limits.threshold(len(cohort)))
        self._server = SecureServer(plan, key, roster, lax, len(audited.shared) + EXTRA)
        self._clients, self._frames = clients, dict.fromkeys(cohort, b"")
        self.holders: dict[str, set[str]] = {}
        clients.open_round(self._server.plan_frame())
        for client in cohort:
            with contextlib.suppress(Aborted):
                clients.join(client, audited.shared)
                clients.offer(client, audited.updates[client], audited.weights[client])

    @property
    def is_open(self) -> bool:
        """Whether a sum was unmasked."""
        return self._server.stage == "open"

    def ask(self, heard: Collection[str] | None = None) -> tuple[str, ...]:
        """Who answered the open stage, of those who are still heard; nobody where it came to none.

        heard: who is heard from now on; None for all. The others are told nothing any more.
        """
        stage = self._server.stage
        if stage not in protocol.STAGES:
            return ()
        frames = {name: frame for name, frame in self._frames.items() if heard is None or name in heard}
        answers, payload = self._clients.answer(stage, frames)
        for name, answer in zip(answers.clients, payload, strict=True):
            if stage == "share":
                dealt = protocol.read_frame(answer, SealedShares)[1].shares
                self.holders[name] = {share.holder for share in dealt} - {name}
            with contextlib.suppress(Rejected):
                self._server.receive(answer)
        self._frames = {}
        with contextlib.suppress(Aborted):
            self._frames = self._server.close()
        return answers.clients
