"""THE main loop: rounds of federated training, as the paper writes them.

phase by phase (`recipe`), and in each
every round t:   cohort S_t <- sample
                 server -> slots: shared vector theta_t
                 every client k in S_t, in parallel: Delta_k, s_k <- fit, score        (training/local.py)
                 theta_{t+1} <- server step on sum_k w_k Delta_k / sum_k w_k,  w_k ~ n_k exp(gamma s_k)
                 evaluate, release, tell who listens                                    (tracking/)

Under `aggregation: secure` the sum is opened over masked vectors only (`actors/secure_round.py`, `privacy/`), and with
a `privacy.mechanism` over clipped and noisy ones.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from fedtalk_ray.actors.between_rounds import begin_phase, end_last_phase, held_out, release
from fedtalk_ray.actors.connection import connect
from fedtalk_ray.actors.parameter_server import ask, start_server
from fedtalk_ray.actors.plain_round import plain_round
from fedtalk_ray.actors.pool import Pool, SlotPool, result_of
from fedtalk_ray.actors.ray_errors import RoundLost
from fedtalk_ray.actors.secure_round import secure_round
from fedtalk_ray.errors import UserError
from fedtalk_ray.federation.cohorts import Sampler, check_cohorts
from fedtalk_ray.federation.privacy_plan import sampling_rate, with_noise
from fedtalk_ray.federation.roster import extend_roster, roster_of
from fedtalk_ray.federation.secure_aggregator import BudgetSpent, limits_of
from fedtalk_ray.outputs import writing
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.publication import told
from fedtalk_ray.progress import progress
from fedtalk_ray.recipe import PhaseName
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import History
from fedtalk_ray.runs.resume import forget_run, interrupted_round, open_run
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.people import people_of
from fedtalk_ray.tracking import Listener
from fedtalk_ray.tracking.prometheus import RoundMetrics
from fedtalk_ray.tracking.tensorboard import TensorBoardLog

Result = TypeVar("Result")
Record = dict[str, Any]


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Runs (or with `resume` goes on with) one federated training over slots; returns the run's folder.

    Raises `errors.UserError` with one line for whatever the user can mend.
    """
    people = people_of(config)
    clients = people.clients
    assert clients is not None
    # Whose held-out loss is looked at: where clients are promised anything, they tell none.
    judged = [client for client in clients[: config.evaluation.clients] if clients.held_out(client)]
    return federate(config, clients, people.manifest.unseen(), SlotPool, resume, judged)


def federate(
    config: TrainConfig,
    clients: Sequence[str],
    unseen: Sequence[str],
    make_pool: Callable[[TrainConfig], Pool],
    resume: bool = False,
    judged: Sequence[str] = (),
) -> Path:
    """`train` over a population of these clients, by whoever the pool asks. unseen: people whom nobody trains on.
    judged: clients with held-out clips, of whom something may be told where nothing is promised to them."""
    if not resume:
        check_cohorts(config, len(clients))
    config = with_noise(config, len(clients))
    sampler = Sampler(config, clients)
    run = RunFolder(Path(config.run))
    first = open_run(run, config, resume)
    try:
        connect(config.address, dashboard=True, debug=config.debug)
        pool = make_pool(config)
    except UserError:
        if not resume:
            forget_run(run)
        raise
    listeners = listeners_of(run, config.model_dump(mode="json"), first)
    try:
        server = start_server(config, pool.vector, sampling_rate(config, len(clients)), pool.one("lora_pairs"))
        examined = judged if config.in_the_clear else unseen[: config.evaluation.clients]
        federation = Federation(config, pool, server, listeners, examined, judged[:1], unseen)
        if number := interrupted_round(run, first):
            federation.enter_phase_of(number)
            federation.close_round(
                {"round": number, "aggregation": config.aggregation, "interrupted": True}, monotonic()
            )
        for number in progress(range(first, config.all_rounds + 1), config.all_rounds + 1 - first, "train"):
            federation.enter_phase_of(number)
            started = monotonic()
            cohort = federation.draw(sampler, number)
            pool.fit_to(len(cohort))
            try:
                record = federation.run_round(number, cohort)
            except BudgetSpent:
                # The rounds before are paid for: their model is the result.
                federation.release_at_the_end(number - 1)
                raise
            if sampler.looks_back:
                record["cohort"] = cohort
            if pool.sites is not None:
                record["sites"] = pool.sites
            federation.close_round(record, started)
    finally:
        for listener in listeners:
            listener.close()
        pool.close()
    return run.path


class Federation:
    """One run while it goes on: its slots, its server, and who listens."""

    def __init__(
        self,
        config: TrainConfig,
        pool: Pool,
        server: Any,
        listeners: Sequence[Listener] = (),
        examined: Sequence[str] = (),
        shown: Sequence[str] = (),
        unseen: Sequence[str] = (),
    ) -> None:
        """examined: whose held-out loss is measured. shown: clients of whom samples are made. unseen: people whom
        nobody trains on; of the first a sample is made, and of so many as wanted the lips are watched."""
        self._config, self._pool, self._server, self._listeners = config, pool, server, listeners
        self._examined, self._unseen = list(examined), list(unseen)
        self._speakers = [*shown, *self._unseen[:1]]
        self._run = RunFolder(Path(config.run))
        self._roster = roster_of(self._run)
        self._phase: PhaseName | None = None

    def enter_phase_of(self, number: int) -> None:
        """Goes over to the phase that a round belongs to, where the slots are not in it."""
        phase = self._config.phase_at(number)
        if phase.name != self._phase:
            begin_phase(self._pool, self._server, phase)
            self._phase = phase.name

    def draw(self, sampler: Sampler, number: int) -> list[str]:
        """The cohort of a round."""
        history = self._run.history() if sampler.looks_back else []
        capped = self._config.privacy.participation_cap is not None
        spent = ask(self._server, "participations") if capped else {}
        out = ask(self._server, "left_out", number, sampler.spare) if self._config.aggregation == "secure" else ()
        size = self._config.cohort.size_in(self._config.phase_at(number).name)
        return sampler.cohort(number, history, spent, {*out, *self._pool.away(size)})

    def run_round(self, number: int, cohort: list[str]) -> Record:
        """Trains a drawn cohort and moves the shared parameters on; returns the round's line for the history."""
        config, secure = self._config, self._config.aggregation == "secure"
        if config.privacy.mechanism != "none":
            ask(self._server, "note_draw")
        if len(cohort) < (limits_of(config.privacy).floor * config.strategy.groups if secure else 1):
            figures = ask(self._server, "skip", number)
            return {
                "round": number,
                "aggregation": config.aggregation,
                "counts": {"cohort": len(cohort)},
                **figures,
            }
        one_round: Any = partial(plain_round, charge=config.privacy.mechanism != "none")
        if secure:
            one_round = partial(secure_round, groups=config.strategy.groups)
        enough = config.cohort.size if config.cohort.over_select else None
        try:
            if secure:
                self._enrol(cohort)
            record, attempts = self.with_parameters(
                "shared", lambda shared: one_round(self._pool, self._server, number, cohort, shared, enough)
            )
        except BudgetSpent:
            # Nobody was asked, and there is nothing left to charge it to.
            raise
        except Exception:
            # That the run ends here, whatever by, may tell of who was there.
            ask(self._server, "give_up", number, cohort)
            raise
        return record | {"attempts": attempts} if attempts > 1 else record

    def close_round(self, record: Record, started: float) -> None:
        """Evaluates and releases where it is time to, and tells who listens."""
        config, number = self._config, record["round"]
        phase = config.phase_at(number)
        record["phase"] = phase.name
        # Within the phase: only there does a model speak that changes from round to round.
        place, last = number - phase.first + 1, number == phase.last
        speaks = phase.name == "faces"
        if last or place % config.evaluation.every == 0:
            with timed(record, "evaluate"):
                heard = self._unseen[: config.evaluation.speakers]
                for figure, people in (("held_out_loss", self._examined), ("lip_agreement", heard)):
                    if people and speaks:
                        measure = partial(held_out, self._pool, figure, people, number)
                        record[figure], _ = self.with_parameters("released", measure)
                if config.privacy.mechanism == "gaussian":
                    # Up to a second of arithmetic; secure rounds tell it themselves.
                    record |= ask(self._server, "spent")
        shows = place % config.evaluation.sample_every == 0
        if number == config.all_rounds or (speaks and (last or shows)):
            with timed(record, "sample"):
                self.release_at_the_end(number) if number == config.all_rounds else self.release(number, shows)
        record["seconds"] = round(monotonic() - started, 2)
        if config.privacy.hides_cohorts:
            with writing(self._run.server_log), open(self._run.server_log, "a") as file:
                file.write(json.dumps(record) + "\n")
            record = told(record)
        for listener in self._listeners:
            listener.after_round(record, len(self._pool.ready))

    def release(self, number: int, shows: bool = True) -> None:
        """Exports the model as it is after a round of the phase `faces`. shows: with samples."""
        speakers = self._speakers if shows else []
        self.with_parameters("released", lambda shared: release(self._pool, speakers, number, shared))
        self._tell_of_samples(number)

    def release_at_the_end(self, number: int) -> None:
        """Exports what all phases made, the present one's as far as it came; nothing before the phase `faces`."""
        phases = self._config.phases
        if self._phase is not None and phases.index(self._phase) >= phases.index("faces"):
            end_last_phase(self._pool, self._server, self._phase)
            release(self._pool, self._speakers, number, None)
            self._tell_of_samples(number)

    def _tell_of_samples(self, number: int) -> None:
        if (newest := self._run.newest_sample()) and newest[0] == number:
            for listener in self._listeners:
                listener.after_sample(number, newest[1])

    def with_parameters(self, which: str, work: Callable[[Any], Result]) -> tuple[Result, int]:
        """What `work` on the server's parameters returns, and at which attempt: it begins again where they were lost.

        which: "shared" to go on from, or "released" to look at (`ParameterServer`).
        """
        policy, attempts = self._pool.policy, 1
        while True:
            try:
                # One numpy array in the store, read by every slot without a copy.
                return work(getattr(self._server, which).remote()), attempts
            except RoundLost:
                if not policy.tries_again(attempts):
                    raise
                attempts += 1

    def _enrol(self, cohort: list[str]) -> None:
        """Adds the public keys of those who take part for the first time to the roster, which only ever grows."""
        known = self._roster.read()[0].clients if self._roster.path.is_file() else {}
        if new := [client for client in cohort if client not in known]:
            outcomes = self._pool.run("enrol", new)
            keys = {name: key for outcome in outcomes for name, key in result_of(outcome).items()}
            extend_roster(self._roster.path, SigningKey.kept_in(self._run.server_key).public, keys)


def listeners_of(run: RunFolder, settings: dict[str, Any], first: int) -> list[Listener]:
    """History, TensorBoard and Prometheus. What a resumed run had told them of rounds from `first` on is dropped."""
    log = TensorBoardLog(run.tensorboard, first)
    log.settings(settings)
    return [History(run.history_file, keep=first - 1), log, RoundMetrics(settings["run"])]


@contextmanager
def timed(record: Record, stage: str) -> Iterator[None]:
    """Writes the seconds of a stage into a round's record."""
    started = monotonic()
    yield
    record.setdefault("stage_seconds", {})[stage] = round(monotonic() - started, 3)
