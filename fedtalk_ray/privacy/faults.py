"""Who broke the protocol: what a server that keeps to it can say of clients after an exchange.

Guarantee, to an honest client, as long as no more clients are in league than the protocol bears (`graph.tolerated`): no
proven fault is ever found with it, and a suspected one only where it fell silent, or did not begin to speak, in a round
that was then lost.

What an exchange leaves as evidence. A dealer commits to every share, and a holder is given the commitment with it: so
before anything is opened it signs whose share is of no use to it, and who did not complain has a share that fits. The
dealer answers a complaint by opening that share, which the complainer was to know in any case; so nobody is believed
for saying it, and a round is not lost by false complaints about dealers who are there. More complaints about a dealer
that does not answer than clients can be in league are one of an honest client at least.

>>> Fault.SILENT in PROVEN, Fault.KEPT_BACK in PROVEN
(False, True)
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """What somebody did."""

    WRONG_SHARES = "dealt shares that do not give its secret"
    WRONG_OPENING = "opened another share than it had dealt"
    KEPT_BACK = "kept back a share that it had signed for"
    USELESS_SHARES = "dealt shares that more clients found useless than can be in league"
    UNANSWERED = "did not answer those who found its shares useless"
    SILENT = "was silent in a round that was lost"


PROVEN = frozenset({Fault.WRONG_SHARES, Fault.WRONG_OPENING, Fault.KEPT_BACK, Fault.USELESS_SHARES})


@dataclass(frozen=True)
class Secret:
    """One that has to be given back. owner: whose. holders: who was dealt a share of it. given: who gave one that fits.
    missing: whether they were not enough."""

    owner: str
    holders: Collection[str]
    given: Collection[str]
    missing: bool


def faults(
    secrets: Collection[Secret], answered: Collection[str], complaints: Mapping[str, Collection[str]], tolerated: int
) -> dict[str, Fault]:
    """Who is at fault after the last stage.

    answered: who gave an answer in it. complaints: holder -> whose shares it signed to be of no use. tolerated: the
    most clients that can be in league.
    """
    proven: dict[str, Fault] = {}
    suspected: dict[str, Fault] = {}
    for secret in secrets:
        lacking = set(secret.holders) - set(secret.given)
        complaining = {holder for holder in lacking if secret.owner in complaints.get(holder, ())}
        proven |= dict.fromkeys((lacking - complaining) & set(answered), Fault.KEPT_BACK)
        if len(complaining) > tolerated:
            proven[secret.owner] = Fault.USELESS_SHARES
        elif secret.missing:
            suspected |= dict.fromkeys(lacking - complaining - set(answered), Fault.SILENT)
            if complaining:
                suspected[secret.owner] = Fault.UNANSWERED
    return suspected | proven
