"""The attack on the wire: all that the parameter server sees of a secure exchange, against what it promises to hide.

Attacked guarantee: of a client's update the server learns nothing but what the opened sum tells. Looked at are frames
that hold more than the protocol lists, masked vectors that are not uniform or go along with the true update, masks that
repeat or that the server can make (`masks`), holders whom it can foretell (`holders`), and an opened sum that is not
the survivors' or has not its noise. The exchanges of a run with large cohorts are on a sparse graph, as the run's are.

Not covered: a server that lies (`lying_server`), and what the sum itself gives away.
"""

import math
from collections import Counter
from dataclasses import fields
from typing import Any

import numpy as np

from fedtalk_ray.audits.attack import Figure, Outcome, Round
from fedtalk_ray.audits.effort import Effort
from fedtalk_ray.audits.holders import check_dealt, check_drawn
from fedtalk_ray.audits.masks import View, uniform_p
from fedtalk_ray.audits.recorded_exchange import Exchange, clear_sum, enlarged, run_exchange, run_twice
from fedtalk_ray.federation.secure_aggregator import limits_of, make_codec
from fedtalk_ray.messages import FIELDS, TO_SERVER
from fedtalk_ray.privacy.protocol import Frame
from fedtalk_ray.privacy.update_codec import EXTRA
from fedtalk_ray.privacy.wire import MalformedMessage, decode, encode

ORDER, TITLE = 1, "all that the server saw"
KNOWS = (
    "The parameter server, honest but curious: every byte that reaches it in a round, its own keys, the round's public "
    "values, and whatever can be computed from them."
)

CHANCE = 2e-6
"""How often each of the seven statistical checks may fail a sound run: together once in 70,000."""

SIGNATURE = 64


def attack(subject: Any, effort: Effort) -> Outcome:
    """subject.round: the `Round` whose clients take part. Always the same work, whatever the effort."""
    audited: Round = subject.round
    outcome = Outcome("server_saw", KNOWS)
    if audited.config.aggregation == "plain":
        in_the_clear(audited, outcome)
        return outcome
    limits = limits_of(audited.config.privacy)
    if is_large := audited.config.cohort.size > limits.complete_up_to:
        # The audited are fewer than a cohort, and would be no sparse graph.
        audited = enlarged(audited, limits.complete_up_to + 1)
    one, two = run_twice(audited)
    exchanges = [one, two]
    names = sorted(audited.updates)
    if is_large:
        # Nor is anybody to deal shares of a seed to a holder that left before it masked.
        exchanges.append(run_exchange(audited, absent={"share": {names[1]}, "mask": {names[0]}}))
    elif len(names) > limits.survivors(len(names)):
        # With a dropout the server opens a masking key, and must open no seed beside it.
        exchanges.append(run_exchange(audited, absent={"mask": {names[0]}}))
    check_fields(exchanges, len(audited.shared) + EXTRA, outcome)
    if outcome.broken:
        outcome.notes.append("The rest of the attack reads frames as the list has them; it was left out.")
        return outcome
    if refused := sum((exchange.refused for exchange in exchanges), Counter[str]()):
        outcome.broken.append(f"honest clients or their messages were refused: {dict(refused)}")
    views = [View(exchange) for exchange in exchanges]
    check_dealt(views, outcome)
    if is_large and all(view.holders for view in views):
        check_drawn(views[0], views[1], outcome, CHANCE)
    if not all(view.seeds for view in views):
        why = {exchange.aborted for exchange in exchanges if exchange.aborted}
        outcome.broken.append(f"an exchange of {len(names)} clients did not reach its end ({', '.join(sorted(why))})")
        return outcome
    check_masked(audited, views, outcome)
    check_masks(views[0], views[1], outcome)
    check_sums(audited, exchanges, outcome)
    for name in sorted({name for view in views for name in view.opened_twice()}):
        outcome.broken.append(f"both secrets of {name} were opened to the server: nothing hides its vector any more")
    return outcome


def in_the_clear(audited: Round, outcome: Outcome) -> None:
    """Plain aggregation: a slot's sum over its chunk of clients, which may be a single one."""
    sums = {name: np.float32(audited.weights[name]) * update for name, update in audited.updates.items()}
    seen = [correlation(sums[name], update) for name, update in audited.updates.items()]
    chunk = math.ceil(audited.config.cohort.size / audited.config.slots.count)
    outcome.figures += [
        Figure("correlation of a chunk of one client with its true update", float(np.min(seen))),
        Figure("clients in a chunk's sum, at most", float(chunk)),
    ]
    outcome.notes.append(
        "Nothing is promised against the server: aggregation is plain. It holds each slot's weighted sum in the clear, "
        f"here over chunks of {chunk} clients at most, and with a slot for each client every update."
    )


def check_fields(exchanges: list[Exchange], length: int, outcome: Outcome) -> None:
    """Field by field and byte by byte: frames hold what is listed and nothing beside it."""
    found = [
        line
        for exchange in exchanges
        for stage, frames in exchange.frames.items()
        for data in frames
        for line in unlisted(stage, data, exchange.plan.cohort, length)
    ]
    outcome.figures.append(Figure("fields that are not on the list", float(len(found))))
    outcome.broken += [f"what reaches the server is not on the list: {line}" for line in sorted(set(found))]


def unlisted(stage: str, data: bytes, cohort: tuple[str, ...], length: int) -> list[str]:
    """What of a client's frame is not in `messages.FIELDS`, a line each. length: of the masked vector."""
    kind = TO_SERVER[stage]
    try:
        frame = decode(Frame, data)
        message: Any = decode(kind, frame.body)
    except MalformedMessage as error:
        return [f"the frame of {stage} is no {kind.__name__} ({error})"]
    if frame.kind != kind.__name__ or len(frame.signature) != SIGNATURE:
        return [f"the frame of {stage} is a {frame.kind} with a signature of {len(frame.signature)} bytes"]
    if encode(Frame(frame.kind, encode(message), frame.signature)) != data:
        return [f"the {frame.kind} has bytes that are in none of its fields"]
    return _unlisted(message, cohort, length)


def _unlisted(message: Any, cohort: tuple[str, ...], length: int) -> list[str]:
    kind = type(message)
    listed, lines = FIELDS.get(kind, {}), []
    for field in fields(message):
        value, what = getattr(message, field.name), f"{kind.__name__}.{field.name}"
        if field.name not in listed:
            lines.append(what)
        elif isinstance(value, bytes) and len(value) not in listed[field.name]:
            lines.append(f"{what} of {len(value)} bytes")
        elif isinstance(value, str) and value not in cohort:
            lines.append(f"{what} names nobody of the cohort")
        elif isinstance(value, np.ndarray) and len(value) != length:
            lines.append(f"{what} of {len(value)} values")
        elif isinstance(value, tuple):
            if len(value) > len(cohort):
                lines.append(f"{what} of {len(value)} parts")
            # Places among the clients, and parts.
            places, parts = (
                [part for part in value if isinstance(part, int) is as_place] for as_place in (True, False)
            )
            if any(not 1 <= place <= len(cohort) for place in places):
                lines.append(f"{what} names nobody of the cohort")
            lines += [line for part in parts for line in _unlisted(part, cohort, length)]
        elif not isinstance(value, bytes | str | np.ndarray):
            lines.append(f"{what} of type {type(value).__name__}")
    return lines


def check_masked(audited: Round, views: list[View], outcome: Outcome) -> None:
    """Masked vectors look like uniform numbers, and like nothing of the update that is in them."""
    seen = [(audited.updates[name], vector) for view in views for name, vector in view.masked.items()]
    p_values = [uniform_p(vector) for _, vector in seen]
    outcome.series["p values of masked bytes"] = p_values
    outcome.figures.append(Figure("masked bytes being uniform, smallest p corrected", corrected(p_values)))
    if corrected(p_values) < CHANCE:
        outcome.broken.append("masked vectors are not uniform")
    # As signed numbers: small updates of either sign are then near zero, masked or not.
    found = [abs(correlation(vector[:-EXTRA].view("<i4"), update)) for update, vector in seen]
    largest, values, count = float(np.max(found)), len(audited.shared), len(found)
    guess = math.sqrt(2 * math.log(count) / values)
    outcome.figures.append(Figure("largest correlation of a masked vector with its update", largest, chance=guess))
    if largest > math.sqrt(2 * math.log(2 * count / CHANCE) / values):
        outcome.broken.append(f"masked vectors go along with the true updates: correlation {largest:.3f}")


def check_masks(one: View, two: View, outcome: Outcome) -> None:
    """No mask repeats, and the server can make none: neither seeds before they are opened, nor pairwise masks at all.

    one, two: of `exchange.run_twice`, all the same but for what clients draw.
    """
    names = sorted(one.seeds.keys() & two.seeds.keys())
    known = {(name, where) for name in names if (where := one.known_seed(name))}
    known |= {(name, "it is the same in two exchanges") for name in names if one.seeds[name] == two.seeds[name]}
    count = len({name for name, _ in known})
    outcome.figures.append(Figure("self-mask seeds that the server has before they are opened", float(count)))
    outcome.broken += [f"the mask seed is known to the server: {where}" for where in sorted({w for _, w in known})]
    tests: list[tuple[str, float]] = []
    for name in names:
        rest, again = one.rest(name), two.rest(name)
        tests += [
            (
                "masks repeat in two exchanges over the same public values",
                uniform_p(one.masked[name] - two.masked[name]),
            ),
            ("pairwise masks repeat in two exchanges over the same public values", uniform_p(rest - again)),
            ("nothing hides a vector when its self mask is off", uniform_p(rest)),
        ]
        for rule, left in one.without_guessed_pairs(name):
            tests.append((f"the mask seed of a pair is known to the server: from {rule}", uniform_p(left)))
    p_values = [p for _, p in tests]
    outcome.figures.append(Figure("masks without what the server can make, smallest p corrected", corrected(p_values)))
    outcome.broken += sorted({what for what, p in tests if p * len(tests) < CHANCE})
    # The search proves something only when the opened seeds are the masks': without them the sum must show.
    total = np.array([one.rest(name) for name in names]).sum(axis=0, dtype=np.uint32)
    if not uniform_p(total) < CHANCE:
        outcome.broken.append(
            "masks do not cancel: without the masks of the opened seeds the sum over all clients is still uniform"
        )


def check_sums(audited: Round, exchanges: list[Exchange], outcome: Outcome) -> None:
    """What the server opened is the survivors' weighted mean, computed here in the clear, and its noise is as said."""
    opened = [exchange for exchange in exchanges if exchange.update is not None]
    for exchange in exchanges:
        if exchange.update is None:
            outcome.broken.append(f"masks do not cancel: the honest clients' sum was thrown away ({exchange.aborted})")
    if not opened:
        return
    if opened[0].config.privacy.mechanism == "none":
        errors = [error_of(audited, exchange) for exchange in opened]
        name = "error of the opened mean over the stated bound"
        outcome.figures.append(Figure(name, float(np.max(errors)), claim=1.0))
        if np.max(errors) > 1:
            outcome.broken.append(f"the opened mean is not the survivors': {np.max(errors):.3g} times the stated bound")
        return
    spreads, pulls = np.array([noise_of(audited, exchange) for exchange in opened]).T
    spread, pull = float(spreads[np.argmax(np.abs(spreads - 1))]), float(np.max(np.abs(pulls)))
    outcome.figures += [
        Figure("noise in the opened mean over what is configured", spread, claim=1.0),
        Figure("opened mean along the true one, in deviations of the noise", pull),
    ]
    # A deviation estimated from D values is off by 1 / sqrt(2 D).
    sigmas = math.sqrt(2 * math.log(2 * len(opened) / CHANCE))
    if abs(spread - 1) > max(0.1, sigmas / math.sqrt(2 * len(audited.shared))):
        outcome.broken.append(f"the opened mean has {spread:.3g} times the noise that is configured")
    if pull > sigmas:
        outcome.broken.append(
            f"the opened mean is not the survivors': {pull:.3g} deviations of the noise off along the true one"
        )


def error_of(audited: Round, exchange: Exchange) -> float:
    """Without noise: how far the opened mean lies from the one in the clear, over `UpdateCodec.error_bound`."""
    total, weights = clear_sum(audited, exchange.survivors)
    mean = exchange.plan.clip_norm * total / weights
    codec = make_codec(exchange.config, len(mean))
    bound = codec.error_bound(len(exchange.survivors), weights, exchange.plan.clip_norm)
    assert exchange.update is not None
    # The opened mean is rounded to float32, which the bound leaves out.
    return float(np.linalg.norm(exchange.update - mean) / (bound + 2.0**-23 * np.linalg.norm(mean)))


def noise_of(audited: Round, exchange: Exchange) -> tuple[float, float]:
    """With noise: the root mean square of what the opened sum has beside the true one, and its part along the true
    one, both over the deviation that the configuration asks for."""
    true, _ = clear_sum(audited, exchange.survivors)
    config, survivors, clip_norm = exchange.config, len(exchange.survivors), exchange.plan.clip_norm
    privacy, codec = config.privacy, make_codec(config, len(true))
    assert exchange.update is not None and privacy.noise_multiplier is not None
    deviation = privacy.noise_multiplier * codec.sensitivity / codec.scale
    if privacy.mechanism == "skellam":
        # Each client adds so much that the fewest who may be opened have enough.
        fewest = limits_of(config.privacy).opened(len(exchange.plan.cohort))
        deviation *= math.sqrt(survivors / (fewest - privacy.colluders))
    noise = exchange.update.astype(np.float64) * codec.denominator / clip_norm - true
    with np.errstate(invalid="ignore"):
        along = float(noise @ true / np.linalg.norm(true))
    return float(np.sqrt(np.mean(noise**2))) / deviation, along / deviation


def correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Pearson's; no number where one of the two does not vary."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(one.astype(np.float64), two.astype(np.float64))[0, 1])


def corrected(p_values: list[float]) -> float:
    """The smallest p value after Bonferroni; no number where one is none."""
    # numpy's minimum keeps what is no number, Python's may drop it.
    return float(np.minimum(1.0, np.min(p_values) * len(p_values)))
