"""Who holds shares of a client's secrets, and whom it so shares masks with: everybody, or above 100 clients some.

Guarantee, against a server that does anything together with up to `tolerated` clients, whoever they are but fixed
before holders are drawn: what it can open are sums over at least `fewest` clients of the cohort, those in league among
them.

Every client draws its holders itself, from the cohort as it was planned and with the system's randomness: a server that
chooses the cohort, decides who is heard and tells everybody something else has no say in it. Two clients share a mask
if one of them holds shares of the other's secrets.

Why, for n clients of whom c are in league. A quorum of the cohort must confirm the session and the survivors U3 before
an honest client opens anything, and each signs once: so there is one such set, unless c >= 2 quorum - n. Honest clients
give one kind of share of each other: seeds of U3, keys of the rest; the keys of U3 stay closed, as fewer than t of
anybody's holders are in league. A client hands shares of its seed only to holders with whom it shares a mask, and t
must give theirs: those are in U3, and what an honest one of them shares with the client cancels in a sum with it and
else not at all. So an opened sum is over a set S of honest clients each of whom has at least t - 1 of its holders in S
or in league.

- All hold everybody's shares, and t is the quorum: so S has t - c clients at least, and n - quorum do not confirm at
  most, which is fewer; somebody in S confirms, and whoever confirms that somebody survived has masked with it. So S is
  all the honest ones of U3.
- Each has k holders of its own choice. Choices of different clients are independent, so the chance that there is such a
  set of fewer than m clients, the c among them, is at most

      sum over a = 1 ... m - c - 1 of  C(n - c, a) P(Hypergeometric(n - 1, a - 1 + c, k) >= t - 1)^a

  That is for one exchange. Clients whom somebody wins over after he saw who drew whom are not covered.

>>> chosen(list("abc"), "a")
('b', 'c')
>>> holders(256), threshold(256), tolerated(64), tolerated(256)
(32, 20, 21, 25)
"""

import math
import random
from collections.abc import Collection
from functools import cache
from itertools import takewhile

COMPLETE_UP_TO = 100
SPARSE = 32
"""Holders of each client in larger cohorts."""
NEGLIGIBLE = 2.0**-40
"""Chance, in one exchange, that the holders whom clients drew let a server open less than is promised."""

_draw = random.SystemRandom()


def holders(cohort: int, complete_up_to: int = COMPLETE_UP_TO) -> int:
    """k: how many others hold shares of a client's secrets, for a planned cohort of so many."""
    return cohort - 1 if cohort <= complete_up_to else min(cohort - 1, SPARSE)


def quorum(cohort: int) -> int:
    """Two thirds of a planned cohort and one: so many must confirm the same survivors before anything is opened."""
    return 2 * cohort // 3 + 1


def threshold(cohort: int, complete_up_to: int = COMPLETE_UP_TO) -> int:
    """t, the shares that give a secret back, of the k + 1 that there are (of its seed the client keeps one itself).

    The larger t is, the more clients must be in league to open a vector, and the fewer may drop out. Two thirds and
    one where all hold everybody's, so that a third may; else three fifths and one, as of few holders more are missing
    by chance: of 256 clients a fifth may (docs/privacy.md).
    """
    if cohort <= complete_up_to:
        return quorum(cohort)
    return 3 * (holders(cohort, complete_up_to) + 1) // 5 + 1


def chosen(cohort: Collection[str], client: str, complete_up_to: int = COMPLETE_UP_TO) -> tuple[str, ...]:
    """A client's holders, sorted. Drawn from the system's randomness where they are not everybody."""
    others = sorted(set(cohort) - {client})
    return tuple(sorted(_draw.sample(others, holders(len(others) + 1, complete_up_to))))


def fewest(cohort: int, complete_up_to: int = COMPLETE_UP_TO) -> int:
    """m: fewest clients over whom a sum can be opened, whatever the server does with `tolerated` clients of its own."""
    return quorum(cohort) if cohort <= complete_up_to else cohort // 2


@cache
def tolerated(cohort: int, complete_up_to: int = COMPLETE_UP_TO) -> int:
    """Clients that may be in league with a server that does anything, before it can open a sum over fewer than
    `fewest` says; on sparse graphs other than with a chance of `NEGLIGIBLE`."""
    most = 2 * quorum(cohort) - cohort - 1
    if cohort <= complete_up_to:
        return most
    borne = takewhile(lambda c: chance(cohort, c, complete_up_to) <= NEGLIGIBLE, range(most + 1))
    return max(borne, default=0)


def chance(cohort: int, colluders: int, complete_up_to: int = COMPLETE_UP_TO) -> float:
    """Bound on the chance that a sum over fewer than `fewest` clients can be opened, at most 1 (the formula above)."""
    k, t, honest = holders(cohort, complete_up_to), threshold(cohort, complete_up_to), cohort - colluders
    total = 0.0
    for size in range(1, fewest(cohort, complete_up_to) - colluders):
        tail = _log_tail(cohort - 1, size - 1 + colluders, k, t - 1)
        if tail > -math.inf:
            total += math.exp(min(0.0, _log_choose(honest, size) + size * tail))
    return min(1.0, total)


def _log_tail(population: int, marked: int, drawn: int, least: int) -> float:
    """log P(Hypergeometric >= least), of so many drawn how many are marked; -inf for never."""
    possible = range(max(least, drawn - (population - marked)), min(drawn, marked) + 1)
    if not possible:
        return -math.inf
    terms = [_log_choose(marked, x) + _log_choose(population - marked, drawn - x) for x in possible]
    highest = max(terms)
    total = highest + math.log(sum(math.exp(term - highest) for term in terms))
    return min(0.0, total - _log_choose(population, drawn))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
