"""Who shares masks with whom: everybody with everybody, or above 64 clients a random ring with many neighbours.

Guarantee (Bell et al. 2020), against a server with some of the clients: the ring's order comes from the hash of
everybody's fresh keys, not from the server, so that a client's neighbours are a random sample of the round. Not
covered: a server that makes up many clients (Sybils) and their keys until the order suits it.

>>> neighbours(["c", "a", "b"], bytes(32))["a"]
('b', 'c')
"""

import hashlib
import math
from collections.abc import Sequence

COMPLETE_UP_TO = 64


def degree(clients: int, complete_up_to: int = COMPLETE_UP_TO) -> int:
    """Neighbours of each client: all others up to 64 clients, then an even number near 4.5 log2(n): 36 of 256."""
    if clients <= complete_up_to:
        return clients - 1
    return 2 * math.ceil(4.5 * math.log2(clients) / 2)


def threshold(clients: int, complete_up_to: int = COMPLETE_UP_TO) -> int:
    """Shares that give a secret back, of those of a client's holders (its neighbours and itself): 2n/3 + 1 on the
    complete graph, 5/8 on the ring, both rounded down.

    A server that tells two stories needs two sets of t holders, which have 2t - h of h in common: a third of the
    complete graph and a quarter of a ring's neighbourhood (9 of 37 at 256 clients; with t just over one half it would
    be 3). The more it needs, the fewer may drop out: 14 of those 37.
    """
    holders = degree(clients, complete_up_to) + 1
    return 2 * holders // 3 + 1 if clients <= complete_up_to else 5 * holders // 8


def neighbours(
    clients: Sequence[str], session: bytes, complete_up_to: int = COMPLETE_UP_TO
) -> dict[str, tuple[str, ...]]:
    """Each client's neighbours, sorted. `session` orders the ring (Harary: k/2 to each side)."""
    if len(clients) <= complete_up_to:
        everybody = sorted(clients)
        return {client: tuple(other for other in everybody if other != client) for client in everybody}
    ring = sorted(clients, key=lambda client: hashlib.sha256(session + client.encode()).digest())
    side, size = degree(len(clients), complete_up_to) // 2, len(ring)
    return {
        client: tuple(sorted(ring[(place + step) % size] for step in range(-side, side + 1) if step))
        for place, client in enumerate(ring)
    }
