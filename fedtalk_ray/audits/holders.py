"""Who holds whose shares, as the server sees them dealt: what of it can be foretold, or is of use to a liar.

Guarantee that is attacked (`privacy.graph`): a client deals shares of its key to as many holders as are planned, and
shares of its seed to those of them alone with whom it masks. In large cohorts it draws them itself, from the system's
randomness: no server knows them before, nobody is drawn more often than others, and the graph does not fall apart.
"""

import math
import random
from collections import Counter

import numpy as np
from scipy.stats import binom, hypergeom, norm

from fedtalk_ray.audits.attack import Figure, Outcome
from fedtalk_ray.audits.masks import View
from fedtalk_ray.privacy import graph

GUESSED = 3
"""Clients whose draw is held against all that it could have been made from: one rule makes everybody's."""


def check_dealt(views: list[View], outcome: Outcome) -> None:
    """Every exchange by itself: how many hold a client's key, and whether they alone its seed. All have advertised."""
    lines = set()
    for view in views:
        planned = graph.holders(len(view.exchange.plan.cohort), view.limits.complete_up_to)
        if any(len(held) != planned for held in view.holders.values()):
            lines.add(f"shares of a key were dealt to another number of holders than {planned}")
        for owner, message in view.messages.get("mask", {}).items():
            dealt = {share.holder for share in message.shares} - {owner}
            if dealt - view.partners(owner):
                lines.add("shares of a seed were dealt to holders with whom its owner does not mask")
            if dealt - view.holders[owner]:
                lines.add("shares of a seed were dealt to others than the holders of the key")
    outcome.broken += sorted(lines)


def check_drawn(one: View, two: View, outcome: Outcome, chance: float) -> None:
    """On a sparse graph. one, two: of `recorded_exchange.run_twice`. chance: how often each of the two statistical
    checks may fail a sound run."""
    cohort, views = one.exchange.plan.cohort, (one, two)
    others, drawn = len(cohort) - 1, graph.holders(len(cohort), one.limits.complete_up_to)
    owners = sorted(one.holders.keys() & two.holders.keys())
    again, law = sum(len(one.holders[owner] & two.holders[owner]) for owner in owners), hypergeom(others, drawn, drawn)
    share = again / (drawn * len(owners))
    outcome.figures.append(Figure("holders that are drawn again in a second exchange", share, chance=drawn / others))
    # A sum of many draws is nearly normal.
    if again > len(owners) * law.mean() + norm.isf(chance) * math.sqrt(len(owners) * law.var()):
        outcome.broken.append("holders can be foretold: clients draw the same in two exchanges over the same values")
    # A guess among thousands hits one client's draw by chance where few are drawn of few; a rule hits everybody's.
    if all(is_foretold(view, owner, drawn) for view in views for owner in owners[:GUESSED]):
        outcome.broken.append("holders can be foretold: the draw is made from what the server knows")
    seen = Counter(holder for view in views for held in view.holders.values() for holder in held)
    times = np.array([seen[name] for name in cohort])
    draws = np.array([sum(len(view.holders.keys() - {name}) for view in views) for name in cohort])
    tails = [binom.cdf(times, draws, drawn / others), binom.sf(times - 1, draws, drawn / others)]
    smallest = float(min(1.0, 2 * len(cohort) * np.min(tails)))
    outcome.figures.append(Figure("everybody drawn equally often, smallest p corrected", smallest))
    if smallest < chance:
        outcome.broken.append("some clients are drawn as holders more often than others")
    fewest = min(smallest_part(view) for view in views)
    outcome.figures.append(Figure("clients in the smallest part of the graph", float(fewest)))
    if fewest < len(cohort):
        outcome.broken.append(f"the graph of masks falls apart: a sum over {fewest} clients is opened by itself")


def is_foretold(view: View, owner: str, drawn: int) -> bool:
    """Whether Python's own generator draws a client's holders, begun with something that the server knows."""
    others = sorted(set(view.exchange.plan.cohort) - {owner})
    begins = view.derived(owner)
    return any(
        set(random.Random(begin).sample(others, drawn)) == view.holders[owner]
        for seed in begins
        for begin in (seed, int.from_bytes(seed, "big"))
    )


def smallest_part(view: View) -> int:
    """Clients in the smallest part of the graph that masks do not tie to the rest."""
    left, fewest = set(view.holders), len(view.holders)
    while left:
        part, todo = set[str](), {left.pop()}
        while todo:
            each = todo.pop()
            part.add(each)
            todo |= view.partners(each) - part
        left -= part
        fewest = min(fewest, len(part))
    return fewest
