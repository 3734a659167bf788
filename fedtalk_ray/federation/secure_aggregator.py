"""The server's secure rounds: plans them, holds one exchange at a time, charges the ledger, decodes the opened sum.

A plain class inside the parameter server. Nothing that it holds tells a single client's update.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from math import ceil, sqrt
from typing import Any

from fedtalk_ray.errors import RunError, UserError
from fedtalk_ray.federation.left_out import LeftOut
from fedtalk_ray.federation.roster import roster_of
from fedtalk_ray.messages import Collected, Plan
from fedtalk_ray.outputs import write_synced
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.ledger import Charge, Ledger
from fedtalk_ray.privacy.protocol import PRODUCTION_FLOOR, Aborted, Code, Limits, Rejected
from fedtalk_ray.privacy.publication import simulation
from fedtalk_ray.privacy.secure_server import SecureServer
from fedtalk_ray.privacy.update_codec import LARGEST_SCALE, Averaged, UpdateCodec, weight_scale
from fedtalk_ray.privacy.wire import Buffer
from fedtalk_ray.recipe import STATISTICS_ROUNDS, Pace, PhaseName, longest_step
from fedtalk_ray.runs.checkpoints import config_digest
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import PrivacyConfig, TrainConfig


class BudgetSpent(UserError):
    """The next round would cost more privacy than the configuration allows."""


def limits_of(privacy: PrivacyConfig) -> Limits:
    """The fewest survivors that the configuration allows."""
    return Limits(privacy.insecure_min_survivors or PRODUCTION_FLOOR)


def make_codec(config: TrainConfig, dimension: int, phase: PhaseName = "faces") -> UpdateCodec:
    """The codec that clients and server share in a phase. With Poisson cohorts, sums of up to twice the expected size
    fit."""
    size = config.cohort.size_in(phase)
    largest = 2 * size if config.poisson else ceil(size * (1 + config.cohort.over_select))
    size, largest = size // config.strategy.groups, ceil(largest / config.strategy.groups)
    multiplier = config.privacy.noise_multiplier or 0.0
    privacy = config.privacy_in(phase)
    return UpdateCodec(privacy, multiplier, dimension, size, limits_of(privacy), largest=largest)


def clip_norm_of(config: TrainConfig, number: int, dimension: int) -> float:
    """C of a round of the run before any adaptation: what the configuration says, else no less than an update is long.

    In a step AdamW moves a value by `longest_step` learning rates at most (decay of weights apart), and sgd all of them
    together by the rate times `local.clip_norm`. The updates of puppets' clients were 0.31 to 0.79 of a round's rates
    times the root of the number of values, in `speech`, `faces` and `sharpness`, from the first round to the last.
    """
    phase, local = config.phase_at(number), config.local
    if (fixed := config.privacy_in(phase.name).clip_norm) is not None:
        return fixed
    taken = local if phase.name == "faces" else getattr(config, phase.name)
    pace = Pace.in_round(number, phase, taken.learning_rate, taken.steps)
    if taken is local and local.schedule == "constant":
        pace = Pace(local.learning_rate)
    steps = range(taken.steps)
    if taken is local and local.optimizer == "sgd":
        reach = sum(pace.rate(step) for step in steps) * local.clip_norm
    else:
        reach = sum(pace.rate(step) * longest_step(step) for step in steps) * sqrt(dimension)
    # Clients check it, and the last bit of a cosine is not the same on every machine.
    return float(f"{reach:.6g}")


class SecureAggregator:
    """One run's exchanges, on the server's side.

    run: where the server's key, the number of the last exchange, the ledger and the roster lie.
    """

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        dimension: int,
        rate: float,
        phase: PhaseName = "faces",
        rounds: int = 0,
    ) -> None:
        """rate: the probability with which a client is in a cohort, for the ledger. phase: whose rounds these are.
        rounds: that the run has gone through.

        Raises `RunError` for files that are damaged, gone, or older than one of the others says.
        """
        self._run, self._config, self._rate = run, config, rate
        self._digest = config_digest(config)
        self._key = SigningKey.kept_in(run.server_key)
        self._roster = roster_of(run)
        self._limits, self._phase = limits_of(config.privacy), phase
        self.codec = make_codec(config, dimension, phase)
        self.ledger = Ledger(run.ledger)
        self._check_files(rounds)
        self.left_out = LeftOut(run.left_out)
        self._exchange: SecureServer | None = None
        self._plan: Plan | None = None
        self.survivors = 0
        """Of the exchange that was decoded last."""
        self.answered = False
        """Whether masked inputs of this exchange arrived: who sent one takes no part in another over its round."""

    def begin(
        self,
        round_number: int,
        cohort: list[str],
        backbone: bytes,
        shared: bytes,
        clip_norm: float,
        mean_weight: float | None = None,
    ) -> bytes:
        """Starts an exchange; returns its signed plan. Raises `BudgetSpent` where the round would overspend.

        mean_weight: of the clients of the phase's last round.
        """
        self._exchange, self.answered = None, False
        number = self._next_exchange()
        self.check_budget(number, round_number, cohort)
        roster, run = self._roster.read()
        if roster.server != self._key.public:
            raise RunError(f"{self._roster.path} names another server than {self._run.server_key}")
        self._note(number)
        members, out = tuple(sorted(cohort)), self.left_out.for_good()
        scale = 1.0
        if self.codec.noise is None:
            alike = self._config.statistics_count_alike and self._phase in STATISTICS_ROUNDS
            scale = LARGEST_SCALE if alike else weight_scale(mean_weight, self._config.privacy.most_weight)
        plan = Plan(run, number, round_number, backbone, shared, self._digest, clip_norm, members, out, scale)
        self._plan = plan
        self._exchange = SecureServer(plan, self._key, roster, self._limits, self.codec.length)
        return self._exchange.plan_frame()

    def collect(self, stage: str, frames: Iterable[Buffer]) -> Collected:
        """Takes everybody's answers to a stage and closes it. When stage 2 has closed, the round is charged first."""
        exchange = self._exchange
        if exchange is None or exchange.stage != stage:
            # A server that died and came back holds no exchange; its round is lost.
            return Collected({}, 0, {}, str(Code.LOST))
        rejected: Counter[str] = Counter()
        answered = 0
        for frame in frames:
            try:
                exchange.receive(frame)
                answered += 1
            except Rejected as error:
                rejected[str(error.code)] += 1
        aborted, answers = None, {}
        try:
            answers = exchange.close()
        except Aborted as error:
            aborted = str(error.code)
        if stage == "mask" and answered:
            if self._phase in STATISTICS_ROUNDS and self._plan is not None:
                self._note(answered=self._plan.round)
            plan, self.answered = self._plan, True
            assert plan is not None
            self._charge(self._charge_for(plan.exchange, plan.round, list(plan.cohort)))
        if exchange.faults and self._plan is not None:
            self.left_out.after(self._plan.round, exchange.faults, lost=aborted is not None)
        return Collected(answers, answered, dict(rejected), aborted)

    def decoded(self, round_number: int) -> Averaged:
        """The averaged update of this round's exchange, whose last stage was closed, and the mean of weights as clients
        have them. A sum is decoded once.

        Raises `Aborted` for an absurd sum, and where there is none.
        """
        exchange, plan = self._exchange, self._plan
        if exchange is None or plan is None or plan.round != round_number:
            raise Aborted(Code.LOST)
        self._exchange = None
        self.survivors = len(exchange.survivors)
        averaged = self.codec.decode(exchange.total(), self.survivors, len(plan.cohort), plan.clip_norm)
        if averaged.mean_weight is None:
            return averaged
        return replace(averaged, mean_weight=averaged.mean_weight / plan.weight_scale)

    def check_budget(self, exchange: int, round_number: int, cohort: list[str]) -> None:
        """Raises `BudgetSpent` when one more round would go beyond `privacy.epsilon`."""
        privacy = self._config.privacy
        charge = self._charge_for(exchange, round_number, cohort)
        if privacy.epsilon is None or charge is None:
            return
        cost = getattr(self.ledger.spent(privacy.delta, privacy.participation_cap, charge), privacy.view)
        if cost > privacy.epsilon + 1e-9:
            raise BudgetSpent(
                f"round {round_number} would bring epsilon to {cost:.3f} ({privacy.view} view, delta "
                f"{privacy.delta:g}), and the budget is {privacy.epsilon:g}; the model after round {round_number - 1} "
                f"is the last one{simulation(privacy, '; ')}"
            )

    def note_draw(self) -> None:
        """A cohort was drawn: what was charged so far pays for other draws, be they of the same round."""
        if self.codec.noise is not None:
            self._note(drawn=len(self.ledger.charges))

    def charge_plain(self, round_number: int, cohort: list[str]) -> None:
        """Charges a round whose noise the server adds to a plain sum, or one for which too few came or answered: that
        tells of who is there. Changes nothing where these clients, or for nobody any, have paid for this draw."""
        paid = self.ledger.charges[self._noted()["drawn"] :]
        if any(charge.round == round_number and set(cohort) <= set(charge.clients) for charge in paid):
            return
        number = self._next_exchange()
        self.check_budget(number, round_number, cohort)
        self._charge(self._charge_for(number, round_number, cohort))

    def figures(self) -> dict[str, Any]:
        """What a log may say about privacy after a round, and whether the noise is a larger cohort's."""
        if self.codec.noise is None:
            return {}
        spent = self.ledger.spent(self._config.privacy.delta, self._config.privacy.participation_cap)
        figures = {
            "noise_multiplier": self.codec.noise.multiplier,
            "epsilon": spent.release,
            "epsilon_server": spent.server,
        }
        return figures if self._config.privacy.simulated_cohort is None else figures | {"simulation": True}

    def _charge(self, charge: Charge | None) -> None:
        if charge is not None:
            self.ledger.charge(charge)
            self._note(charge.exchange)

    def _charge_for(self, exchange: int, round_number: int, cohort: list[str]) -> Charge | None:
        noise = self.codec.noise
        return Charge(exchange, round_number, noise, self._rate, tuple(sorted(cohort))) if noise else None

    def _next_exchange(self) -> int:
        charged = max((charge.exchange for charge in self.ledger.charges), default=0)
        return max(self._noted()["exchange"], charged) + 1

    def was_answered(self, round_number: int) -> bool:
        """Whether masked inputs of a round arrived, in this exchange or, of statistics, in any: whoever sent one takes
        no part in another over it."""
        return self.answered or round_number <= self._noted()["answered"]

    def _note(self, exchange: int = 0, **more: int) -> None:
        """Keeps the number of the last exchange, and apart from the ledger how many charges it has; and had when the
        last cohort was drawn (drawn), and the last round of statistics whose masked inputs arrived (answered)."""
        noted = self._noted() | more
        noted |= {"exchange": max(exchange, noted["exchange"]), "charges": len(self.ledger.charges)}
        write_synced(self._run.exchange_number, json.dumps(noted))

    def _noted(self) -> dict[str, int]:
        path = self._run.exchange_number
        try:
            found = json.loads(path.read_text()) if path.exists() else {}
            return {name: int(found.get(name, 0)) for name in ("exchange", "charges", "drawn", "answered")}
        except (OSError, ValueError, OverflowError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is damaged ({error}); without it exchanges would get old numbers") from error

    def _check_files(self, rounds: int) -> None:
        """Raises `RunError` for what was lost, and for a ledger that was put back to an earlier day: what it forgot is
        spent. The number of the last exchange is kept from the beginning, the roster from the first exchange on."""
        if not self._run.exchange_number.exists():
            if rounds:
                raise RunError(
                    f"{self._run.exchange_number} is gone, and the run has gone through {rounds} rounds; clients "
                    "refuse exchanges with old numbers: put it back"
                )
            self._note()
        if self._noted()["exchange"] and self._config.aggregation == "secure" and not self._roster.path.exists():
            raise RunError(f"roster {self._roster.path} is gone; clients take part by the one they saw: put it back")
        if self.codec.noise is None:
            return
        noted, there = self._noted()["charges"], len(self.ledger.charges)
        if there < noted:
            raise RunError(
                f"ledger {self._run.ledger} has {there} charges, and the run had made {noted}; nothing can be trained "
                "on what it forgot: put the last one back"
            )
