"""The attack on the account (the ledger, its history, epsilon): a round in which clients gave something away, and for
which nobody paid.

Attacked guarantee (`privacy.ledger`): whatever came of a round, it is charged once its masked inputs have arrived, and
so is one for which nobody came. The run's own history is held against its ledger, and rounds are gone through that
leave no trace in the model and may be forgotten: a skipped one, and two exchanges that fail after their masked inputs.

And `privacy.update_codec`: a sum is divided by what was fixed before the run, as the account knows of no other release.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fedtalk_ray.audits.attack import Figure, Outcome, Round, fixed_clip_norm
from fedtalk_ray.audits.effort import Effort
from fedtalk_ray.audits.recorded_exchange import Absent, Exchange, central_sum, open_run, run_exchange
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.secure_aggregator import limits_of
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.privacy.ledger import Ledger
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import PrivacyConfig

ORDER, TITLE = 2, "the account"
KNOWS = (
    "Whoever sees the masked inputs or the sums of rounds that were given up, and adds up what the run's own files say "
    "was spent."
)

HARDLY_ANY = 0.05
"""Noise multiplier where only what a sum is divided by is looked at; of less the accountant takes minutes."""


def attack(subject: Any, effort: Effort) -> Outcome:
    """subject.round: the `Round` whose clients take part in the exchanges. subject.run: the run's folder, which may
    lack files. Always the same work, whatever the effort."""
    audited: Round = subject.round
    run, config = subject.run, audited.config
    outcome = Outcome("charges", KNOWS)
    try:
        ledger, records = Ledger(run.ledger), run.whole_records()
    except RunError as error:
        outcome.broken.append(str(error))
        return outcome
    if config.privacy.mechanism == "none":
        outcome.figures.append(Figure("rounds charged", float(len(ledger.charges))))
        outcome.notes.append("No epsilon is claimed: the configuration adds no noise, so there is nothing to charge.")
        if ledger.charges:
            outcome.broken.append("rounds are charged for noise that the configuration does not add")
        return outcome
    check_history(config.privacy, records, ledger, outcome)
    check_epsilon(config.privacy, records, ledger, outcome)
    check_file(run.ledger, outcome)
    check_skipped(audited, outcome)
    check_denominator(audited, outcome)
    if config.aggregation == "secure":
        check_aborted(audited, outcome)
    return outcome


def check_history(privacy: PrivacyConfig, records: list[dict[str, Any]], ledger: Ledger, outcome: Outcome) -> None:
    """Every round whose masked inputs (or sums) arrived is in the ledger, with the configuration's noise."""
    arrived = {record["round"] for record in records if has_arrived(record)}
    charged = [charge.round for charge in ledger.charges]
    outcome.figures += [
        Figure("rounds of the run whose masked inputs arrived", float(len(arrived))),
        Figure("rounds of the run that are charged", float(len(set(charged)))),
    ]
    if not records:
        outcome.notes.append("The run has no history: its ledger was held against nothing.")
    if lost := [record["round"] for record in records if record.get("interrupted")]:
        outcome.notes.append(f"The run died before it wrote down what came of rounds {_listed(lost)}.")
    if missing := sorted(arrived - set(charged)):
        outcome.broken.append(f"rounds whose masked inputs arrived are not charged: {_listed(missing)}")
    if missing := sorted({record["round"] for record in records if was_skipped(record)} - set(charged)):
        outcome.broken.append(f"rounds that were skipped, as too few came, are not charged: {_listed(missing)}")
    # A server that died took a round up again in a new exchange, and that one costs too.
    if again := sorted({number for number in charged if charged.count(number) > 1}):
        outcome.notes.append(f"Charged more than once, because they were taken up again: rounds {_listed(again)}.")
    wanted = (privacy.mechanism, privacy.noise_multiplier)
    others = {c.round for c in ledger.charges if (c.noise.kind, c.noise.multiplier) != wanted}
    if others:
        outcome.broken.append(f"rounds are charged for other noise than the configuration's: {_listed(sorted(others))}")


def has_arrived(record: dict[str, Any]) -> bool:
    """Whether clients' masked inputs, or under plain aggregation their sums, reached the server in this round.

    Of a round that a dying run did not get to write down (`interrupted`) nobody can say.
    """
    counts = record.get("counts", {})
    return bool(counts.get("mask" if record.get("aggregation") == "secure" else "trained", 0))


def was_skipped(record: dict[str, Any]) -> bool:
    """Whether the round was gone through without asking anybody: nothing but the cohort was counted."""
    return bool(record.get("aborted")) and record.get("counts", {}).keys() == {"cohort"}


def check_epsilon(privacy: PrivacyConfig, records: list[dict[str, Any]], ledger: Ledger, outcome: Outcome) -> None:
    """What the history says was spent is what the charges cost, and no more than the budget."""
    spent = ledger.spent(privacy.delta, privacy.participation_cap)
    claim = {privacy.view: privacy.epsilon}
    outcome.figures += [
        Figure("epsilon of the run recomputed, release view", spent.release, claim=claim.get("release")),
        Figure("epsilon of the run recomputed, server view", spent.server, claim=claim.get("server")),
    ]
    if privacy.epsilon is not None and getattr(spent, privacy.view) > privacy.epsilon + 1e-9:
        cost = getattr(spent, privacy.view)
        outcome.broken.append(
            f"the run spent epsilon {cost:.4f} ({privacy.view} view) of a budget of {privacy.epsilon:g}"
        )
    last = max((charge.round for charge in ledger.charges), default=0)
    priced = [record for record in records if "epsilon" in record]
    if not priced or priced[-1]["round"] < last:
        outcome.notes.append("The history says no epsilon after the last charge, so the two were not compared.")
        return
    for name, value in (("epsilon", spent.release), ("epsilon_server", spent.server)):
        if not math.isclose(priced[-1][name], value, rel_tol=1e-6, abs_tol=1e-9):
            outcome.broken.append(
                f"the history says {name} {priced[-1][name]:.6g}, and the ledger's charges cost {value:.6g}"
            )


def check_file(path: Path, outcome: Outcome) -> None:
    """No exchange is in the file twice; reading would hide it."""
    numbers = [entry["exchange"] for entry in json.loads(path.read_text())] if path.is_file() else []
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        outcome.broken.append(f"exchanges are charged twice: {_listed(twice)}")


def check_aborted(audited: Round, outcome: Outcome) -> None:
    """Two exchanges that fail once masked inputs are there: too few of those, and too few that confirm."""
    names = sorted(audited.updates)
    needed = limits_of(audited.config.privacy).survivors(len(names))
    gone = set(names[: len(names) - needed + 1])
    for stage, what in (("mask", "too few masked inputs"), ("confirm", "too few confirmations")):
        absent: Absent = {stage: gone}
        exchange = run_exchange(audited, absent)
        outcome.figures.append(Figure(f"charges of an exchange with {what}", float(len(exchange.charges))))
        outcome.broken += [f"an exchange with {what} {line}" for line in wrong_in_abort(exchange)]


def check_skipped(audited: Round, outcome: Outcome) -> None:
    """The server goes through a round for which nobody came."""
    with tempfile.TemporaryDirectory() as place:
        config = open_run(audited, Path(place) / "run")
        server = ParameterServer(config.run, config)
        before = server.shared().copy()
        server.skip(1)
        charges = len(Ledger(RunFolder(Path(config.run)).ledger).charges)
        outcome.figures.append(Figure("charges of a round for which nobody came", float(charges)))
        if charges != 1:
            outcome.broken.append(
                f"a round for which nobody came was charged {charges} times: that it was skipped tells of who did"
            )
        if not np.array_equal(before, server.shared()):
            outcome.broken.append("a round for which nobody came changed the model")


def check_denominator(audited: Round, outcome: Outcome) -> None:
    """Made-up clients give the same update each, with hardly any noise: whether all of them are in a sum or some, each
    must count as much."""
    privacy = audited.config.privacy.model_copy(update={"noise_multiplier": HARDLY_ANY})
    config = audited.config.model_copy(update={"privacy": privacy})
    update = np.zeros(min(len(audited.shared), 1000), np.float32)
    update[0] = fixed_clip_norm(config)
    names = sorted(audited.updates)
    weights = dict.fromkeys(names, 1.0)
    made_up = Round(config, np.zeros_like(update), audited.frozen, dict.fromkeys(names, update), weights)
    gone = set(names[limits_of(privacy).survivors(len(names)) :])
    if audited.config.aggregation == "plain":
        gone = set(names[len(names) // 2 :])
    if not gone:
        outcome.notes.append("All of these clients must be in a sum: whether it tells how many are was not looked at.")
        return
    counts = [released(made_up, left) for left in (set[str](), gone)]
    share = counts[1] / counts[0]
    outcome.figures.append(Figure("weight of a client in a smaller sum over that in the whole", share, claim=1.0))
    # Half of what it would be over the number of those who are there.
    if not abs(share - 1) < len(gone) / (len(names) - len(gone)) / 2:
        outcome.broken.append(
            f"the released update tells how many took part: where {len(gone)} of {len(names)} are missing each of the "
            f"others counts {share:.3g} times as much"
        )


def released(made_up: Round, gone: set[str]) -> float:
    """How much of one client's update is in the released one, where all but some are in the sum; NaN where none was."""
    names = sorted(made_up.updates.keys() - gone)
    if made_up.config.aggregation == "plain":
        few = {name: made_up.updates[name] for name in names}
        update = central_sum(made_up.config, few, made_up.weights)
    else:
        opened = run_exchange(made_up, {"mask": gone}).update
        update = np.full_like(made_up.shared, np.nan) if opened is None else opened
    return float(update[0]) / len(names)


def wrong_in_abort(exchange: Exchange) -> list[str]:
    """What an exchange that failed after its masked inputs did that it must not do."""
    lines = []
    if not exchange.frames.get("mask"):
        lines.append(f"ended before any masked input came ({exchange.aborted}), so nothing was tried")
    if exchange.aborted is None:
        lines.append("was not given up")
    if exchange.moved:
        lines.append("changed the model")
    if len(exchange.charges) != 1:
        lines.append(
            f"was charged {len(exchange.charges)} times: the budget must be charged once, whatever comes of it"
        )
    return lines


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:5])
    return f"{shown} and {len(numbers) - 5} more" if len(numbers) > 5 else shown
