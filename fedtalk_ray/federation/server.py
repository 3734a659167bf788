"""The parameter server: holds a phase's shared parameters, sums updates, takes the server's step, keeps checkpoints.

A plain class; `fedtalk_ray.actors` makes an actor of it.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.aggregation import average, median
from fedtalk_ray.federation.lora_factors import Pair, settled, without_untrained
from fedtalk_ray.federation.secure_aggregator import SecureAggregator, clip_norm_of
from fedtalk_ray.federation.server_optimizer import make_optimizer
from fedtalk_ray.messages import Collected, PlainUpdate
from fedtalk_ray.privacy.clipping import adapted
from fedtalk_ray.privacy.protocol import Aborted, Code
from fedtalk_ray.privacy.update_codec import MOST_ROUNDING, Averaged
from fedtalk_ray.privacy.wire import Buffer
from fedtalk_ray.recipe import STATISTICS_ROUNDS, PhaseName
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, mean_parameters, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import ServerConfig, TrainConfig


class ParameterServer:
    """State: the round, the phase, its shared parameters float32 [D], the optimiser, and what the phases before ended
    with. Everything else arrives and leaves."""

    def __init__(self, run: str, config: TrainConfig, rate: float = 1.0) -> None:
        """Goes on from the run's newest checkpoint, so a server that died and came back is where it was.

        rate: the probability with which a client is in a cohort; the ledger wants to know.
        """
        self._folder, self._config, self._rate = RunFolder(Path(run)), config, rate
        self._fingerprint, self._checkpoints = config_fingerprint(config), self._folder.checkpoints
        checkpoint = self._folder.checkpoint(config)
        if checkpoint is None:
            raise RunError(f"{self._checkpoints} holds no checkpoint to start from")
        self._take_up(checkpoint)

    def _take_up(self, checkpoint: Checkpoint) -> None:
        config, phase = self._config, checkpoint.phase
        self._round, self._parameters = checkpoint.round, checkpoint.parameters
        self._phase, self._began, self._results = phase, checkpoint.began, checkpoint.results
        self._pairs = checkpoint.pairs
        # A mean of statistics is what it is: no momentum, no average over rounds.
        settings = ServerConfig() if phase in STATISTICS_ROUNDS else config.server
        self._optimizer = make_optimizer(settings, len(self._parameters))
        self._optimizer.state.update(checkpoint.optimizer)
        self._averaged = settings.average
        privacy = config.privacy_in(phase)
        self._adapted = checkpoint.clip_norm
        self._mean_weight = checkpoint.mean_weight
        self._adaptive = privacy.clipping == "adaptive"
        self._groups: list[tuple[int, Averaged | None]] = []
        self._aggregator: SecureAggregator | None = None
        if config.aggregation == "secure" or privacy.mechanism != "none":
            self._aggregator = SecureAggregator(
                self._folder, config, len(self._parameters), self._rate, phase, self._round
            )

    def phase(self) -> PhaseName:
        """Which the shared parameters belong to."""
        return self._phase

    def results(self) -> dict[PhaseName, np.ndarray]:
        """What each phase before ended with, float32 arrays in their order."""
        return self._results

    def end_phase(self) -> dict[PhaseName, np.ndarray]:
        """The results with the present phase's among them, for who goes over to the next; nothing changes here."""
        return self._results | {self._phase: self.released()}

    def begin_phase(self, phase: PhaseName, initial: np.ndarray, after: int, pairs: tuple[Pair, ...] = ()) -> None:
        """Goes over to the next phase, which begins with these parameters, float32 [D], after a round.

        pairs: as in `Checkpoint`.
        What this one ended with is kept. Repeating it changes nothing. Raises `RunError` where the server is elsewhere.
        """
        if phase == self._phase:
            return
        if self._round != after or phase in self._results:
            raise RunError(
                f"the phase {phase} begins after round {after}, and the server is at round {self._round} of the phase "
                f"{self._phase}; the last checkpoint is intact: go on with --resume"
            )
        begun = Checkpoint(self._round, initial, {}, None, phase, self._round, self.end_phase(), pairs)
        save_checkpoint(self._checkpoints, begun, self._fingerprint)
        self._take_up(begun)

    def round(self) -> int:
        """Rounds gone through so far."""
        return self._round

    def shared(self) -> np.ndarray:
        """The shared parameters that the next round starts from, float32 [D]."""
        return self._parameters

    def released(self) -> np.ndarray:
        """The shared parameters to evaluate and export, float32 [D]: the mean over the last `server.average` rounds."""
        if self._averaged == 1:
            return self._parameters
        return mean_parameters(self._checkpoints, self._averaged, self._began)

    def apply(self, round_number: int, *updates: PlainUpdate, cohort: list[str] | None = None) -> float:
        """Applies one round's plain updates and checkpoints; returns the norm of the averaged update.

        Repeating a round that was applied already changes nothing (a restarted caller may ask again) and returns 0.
        Raises `ValueError` for updates of another round or of the wrong shape; the parameters then stay as they were.
        cohort: who took part, for the ledger where the server adds noise.
        """
        if round_number <= self._round:
            return 0.0
        if round_number != self._round + 1 or any(update.round != round_number for update in updates):
            rounds = sorted({round_number, *(update.round for update in updates)})
            raise ValueError(f"updates of rounds {rounds} cannot follow round {self._round}")
        update = average(updates, len(self._parameters))
        if self._aggregator is not None and cohort is not None:
            self._aggregator.charge_plain(round_number, cohort)
            # Every client counts once there: back to their sum.
            summed = update.astype(np.float64) * sum(update.total_weight for update in updates)
            update = self._aggregator.codec.with_noise(summed, self._clip_norm(round_number))
        self._step(round_number, update)
        return float(np.linalg.norm(update))

    def note_draw(self) -> None:
        """Before anybody of a new cohort is asked: each draw of a round is charged for itself, once."""
        if self._aggregator is not None:
            self._aggregator.note_draw()

    def begin(self, round_number: int, cohort: list[str], backbone: bytes) -> bytes:
        """Starts a secure round; returns the plan that every client of the cohort must agree with.

        Raises `BudgetSpent` for a round that would overspend, and `ValueError` for one out of order.
        """
        if round_number != self._round + 1:
            raise ValueError(f"round {round_number} cannot follow round {self._round}")
        shared = hashlib.sha256(self._parameters.tobytes()).digest()
        clip_norm = self._clip_norm(round_number)
        return self._secure().begin(round_number, cohort, backbone, shared, clip_norm, self._mean_weight)

    def collect(self, stage: str, *answers: list[Buffer]) -> Collected:
        """Takes the slots' answers to one stage of the secure round and closes it.

        When the last stage is closed, or the round is over before, the round is gone through: `finish` says how.
        """
        return self._secure().collect(stage, (frame for frames in answers for frame in frames))

    def set_aside(self, round_number: int, aborted: str | None, first: bool) -> str | None:
        """Where a round has several groups (`strategy.groups`): keeps the opened average of one until `finish`.

        aborted: why there is none. first: whether it is the round's first group. Returns why its sum was not opened.
        """
        averaged, secure = None, self._secure()
        try:
            averaged = secure.decoded(round_number) if aborted is None else None
        except Aborted as error:
            aborted = str(error.code)
        self._groups = [*([] if first else self._groups), (secure.survivors if averaged else 0, averaged)]
        return aborted

    def _combined(self, groups: int) -> tuple[int, Averaged]:
        """Of the groups' averages the median, and how many clients they are of. Raises `Aborted` where they were lost,
        where half of them gave none, and where fewer than three did: then nobody is outvoted."""
        kept, self._groups = self._groups, []
        if len(kept) != groups:
            raise Aborted(Code.LOST)
        found = [averaged for _, averaged in kept if averaged is not None]
        if 2 * len(found) <= groups or len(found) < 3:
            raise Aborted(Code.TOO_FEW, f"{len(found)} of {groups} groups gave a sum")
        several: dict[str, list[float]] = {
            name: [value for each in found if (value := getattr(each, name)) is not None]
            for name in ("unclipped", "rounding_error", "mean_weight")
        }
        means = {name: float(np.median(values)) if values else None for name, values in several.items()}
        return sum(count for count, _ in kept), replace(found[0], update=median([e.update for e in found]), **means)

    def finish(self, round_number: int, aborted: str | None = None, groups: int = 1) -> dict[str, Any]:
        """Applies the opened sum, or the median of the groups' averages, and checkpoints; returns what may be logged.

        aborted: why the round is given up; the model then stays as it is, and the round counts as gone through.
        A server that died and came back says that the exchange is lost, and nothing is gone through.
        """
        secure = self._secure()
        if round_number <= self._round:
            return secure.figures()
        if aborted is not None:
            secure.charge_plain(round_number, [])
            self._check_dispensable(round_number, aborted)
        averaged, survivors = None, 0
        opened = {"groups": sum(average is not None for _, average in self._groups)} if groups > 1 else {}
        try:
            if aborted is None and groups > 1:
                survivors, averaged = self._combined(groups)
            elif aborted is None:
                averaged = secure.decoded(round_number)
                survivors = secure.survivors
        except Aborted as error:
            aborted = str(error.code)
            if error.code == Code.LOST:
                return {"aborted": aborted}
            self._check_dispensable(round_number, aborted)
        figures: dict[str, Any] = {"survivors": survivors, "clip_norm": self._clip_norm(round_number), **opened}
        if averaged is None:
            figures["aborted"] = aborted
            self._save(round_number, self._parameters)
        else:
            # Of statistics all weights are cut, so that all clients count alike.
            if averaged.unclipped is not None and self._phase not in STATISTICS_ROUNDS:
                figures["clip_fraction"] = 1 - averaged.unclipped
            if averaged.rounding_error is not None:
                self._check_precise(round_number, averaged.rounding_error)
                figures["rounding_error"] = averaged.rounding_error
            if self._adaptive and averaged.unclipped is not None:
                self._adapted = adapted(self._clip_norm(round_number), averaged.unclipped)
            self._mean_weight = averaged.mean_weight
            self._step(round_number, averaged.update)
            figures["update_norm"] = float(np.linalg.norm(averaged.update))
        return figures | secure.figures()

    def skip(self, round_number: int) -> dict[str, Any]:
        """Goes through a round for which too few clients came; the model stays as it is. Returns what may be logged.

        Raises `BudgetSpent`: with noise a skipped round costs what another does.
        """
        if round_number > self._round:
            if self._aggregator is not None:
                # That too few came says something of who did, and the account counts every round that could have been.
                self._aggregator.charge_plain(round_number, [])
            self._check_dispensable(round_number, str(Code.TOO_FEW))
            self._save(round_number, self._parameters)
        return {"survivors": 0, "aborted": str(Code.TOO_FEW)} | self.spent()

    def give_up(self, round_number: int, cohort: list[str]) -> None:
        """Charges a round with which the run ends, as too few of the cohort answered or by any error; the model stays
        as it is, and the round is to be gone through yet. A cohort that is drawn anew for it, and ends so, costs anew.

        Raises `BudgetSpent` where the round would have overspent.
        """
        if self._aggregator is not None and round_number > self._round:
            self._aggregator.charge_plain(round_number, [] if self._config.aggregation == "secure" else cohort)

    def _check_dispensable(self, round_number: int, aborted: str) -> None:
        """Raises `RunError` where a round that was given up is one of statistics: what follows is built on them."""
        if self._phase in STATISTICS_ROUNDS and aborted != Code.LOST:
            answered = self._aggregator is not None and self._aggregator.was_answered(round_number)
            mend = (
                "clients have answered it and will not a second time: begin another run"
                if answered
                else "the last checkpoint is intact: go on with --resume"
            )
            raise RunError(
                f"round {round_number}, of the phase {self._phase}, was given up ({aborted}), and no other round can "
                f"stand in for it; {mend}"
            )

    def _check_precise(self, round_number: int, rounding_error: float) -> None:
        """Raises `RunError` where weights are so small that rounding shows: in a phase's first round, as the last ones'
        updates are nearly nothing."""
        if rounding_error > MOST_ROUNDING and round_number == self._began + 1:
            raise RunError(
                f"round {round_number}, the first of the phase {self._phase}: rounding to integers adds "
                f"{100 * rounding_error:.2g}% to the update, and may add {100 * MOST_ROUNDING:g}%, as the clients' "
                "weights are tiny; set privacy.weight_reference near a usual weight (training frames, with isfa "
                "times exp(gamma * (score - 1))), or lower strategy.gamma or privacy.samples_cap, and begin another run"
            )

    def spent(self) -> dict[str, Any]:
        """What a log may say about privacy so far; empty without noise."""
        return self._aggregator.figures() if self._aggregator else {}

    def participations(self) -> dict[str, int]:
        """In how many charged rounds each client was."""
        return dict(self._aggregator.ledger.participations()) if self._aggregator else {}

    def left_out(self, round_number: int, spare: int) -> list[str]:
        """Who sits out a round because of faults in the secure protocol. spare: how many a cohort can do without."""
        return self._aggregator.left_out.of(round_number, spare) if self._aggregator else []

    def _clip_norm(self, number: int) -> float:
        return self._adapted or clip_norm_of(self._config, number, len(self._parameters))

    def _secure(self) -> SecureAggregator:
        if self._aggregator is None:
            raise ValueError("this run aggregates in the clear")
        return self._aggregator

    def _step(self, round_number: int, update: np.ndarray) -> None:
        # Optimisers replace their arrays and never write into them, so the old state is still whole.
        before = dict(self._optimizer.state)
        factors, index = self._config.trained_factors, round_number - self._began - 1
        if self._pairs:
            update = without_untrained(update, self._pairs, factors, index)
        parameters = self._optimizer.step(self._parameters, update)
        if self._pairs:
            parameters = settled(parameters, self._pairs, factors)
        try:
            self._save(round_number, parameters)
        except BaseException:
            self._optimizer.state.update(before)
            raise

    def _save(self, round_number: int, parameters: np.ndarray) -> None:
        checkpoint = Checkpoint(
            round_number,
            parameters,
            self._optimizer.state,
            self._adapted,
            self._phase,
            self._began,
            self._results,
            self._pairs,
            self._mean_weight,
        )
        save_checkpoint(self._checkpoints, checkpoint, self._fingerprint, self._averaged)
        self._round, self._parameters = round_number, parameters
