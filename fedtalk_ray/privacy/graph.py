"""Who shares masks with whom: everybody with everybody, or above 64 clients a random ring with many neighbours.

Guarantee: what `tolerated` says holds wherever the colluders stand, so that it does not matter that whoever advertises
last, or decides who is heard, has a say in the ring's order. Degree and threshold follow from the cohort as it was
planned and not from who advertised, whom a server could choose. The order comes from the hash of everybody's fresh keys
(Bell et al. 2020): against a server that is merely curious a client's neighbours are a random sample of the round.

>>> neighbours(["c", "a", "b"], bytes(32), cohort=3)["a"]
('b', 'c')
"""

import hashlib
import math
from collections.abc import Sequence

COMPLETE_UP_TO = 64


def degree(cohort: int, complete_up_to: int = COMPLETE_UP_TO) -> int:
    """Neighbours of each client: all others up to 64 clients, then an even number near 4.5 log2(n): 36 of 256."""
    if cohort <= complete_up_to:
        return cohort - 1
    return 2 * math.ceil(4.5 * math.log2(cohort) / 2)


def threshold(cohort: int, complete_up_to: int = COMPLETE_UP_TO) -> int:
    """t, the shares that give a secret back: 2h/3 + 1, rounded down, of the h that hold one when all of the cohort are
    there (a client's neighbours and itself).

    The larger t is, the more of them must lie to open a vector (`tolerated`), and the fewer may drop out: a third.
    """
    return 2 * (degree(cohort, complete_up_to) + 1) // 3 + 1


def tolerated(cohort: int, complete_up_to: int = COMPLETE_UP_TO) -> int:
    """Clients that may be in league with a lying server, however they are placed, before it can open less than the
    policy allows.

    On the complete graph: to tell two stories about a client, the server needs two sets of t of its n holders, which
    have 2t - n in common. On the ring this is one less than the cheapest attack that is known needs, and **no proof**:
    an arc is cut out whose k/2 neighbours at each end hear other stories than the arc. The i-th client from an end has
    i - 1 + k/2 on its side and wants t - 1, so t - 1 - k/2 at each end fall silent or lie. Those who fall silent (d of
    them on the arc, d beyond, and d between) open their keys to the holders on both sides as long as h - 3d >= t.
    """
    holders, needed = degree(cohort, complete_up_to) + 1, threshold(cohort, complete_up_to)
    if cohort <= complete_up_to:
        return 2 * needed - holders - 1
    silent = (holders - needed) // 3
    return 2 * max(1, needed - 1 - holders // 2 - silent) - 1


def neighbours(
    clients: Sequence[str], session: bytes, *, cohort: int, complete_up_to: int = COMPLETE_UP_TO
) -> dict[str, tuple[str, ...]]:
    """Each client's neighbours among `clients`, sorted. `session` orders the ring (Harary: k/2 to each side).

    cohort: how many clients were planned, at least as many as there are.
    """
    if cohort <= complete_up_to:
        everybody = sorted(clients)
        return {client: tuple(other for other in everybody if other != client) for client in everybody}
    ring = order(clients, session)
    side, size = degree(cohort, complete_up_to) // 2, len(ring)
    return {
        client: tuple(sorted(ring[(place + step) % size] for step in range(-side, side + 1) if step))
        for place, client in enumerate(ring)
    }


def order(clients: Sequence[str], session: bytes) -> list[str]:
    """Around the ring."""
    return sorted(clients, key=lambda client: hashlib.sha256(session + client.encode()).digest())
