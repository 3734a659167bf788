"""Everything that crosses between actors, in one place.

The shared parameters, a float32 vector, go from the parameter server to the slots; a `PlainUpdate` comes back. Raw
frames, sound, latents and identity adapters have no message and never leave the client's side. Scores travel only
in a `ClientReport`; sample counts also show in `total_weight`. All of it belongs to `aggregation: plain`.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ClientReport:
    """What one client tells in the clear under plain aggregation, for logs and plots. No secure mode may send it."""

    client: str
    samples: int
    """Training frames n_k."""
    weight: float
    """Unnormalised aggregation weight."""
    score: float | None
    id_sim: float | None
    temp_stab: float | None
    losses: dict[str, float]


@dataclass(frozen=True)
class PlainUpdate:
    """One slot's chunk of clients, summed: sum_k w_k * Delta_k, and sum_k w_k beside it.

    weighted_sum: float32 [D]. total_weight: positive. The server needs no more than this.
    """

    round: int
    weighted_sum: np.ndarray
    total_weight: float
    reports: tuple[ClientReport, ...] = field(default=())

    def nbytes(self) -> int:
        """Size of the vector on the wire."""
        return int(self.weighted_sum.nbytes)


@dataclass(frozen=True)
class StatisticsUpdate:
    """Sums over a chunk of clients from which the server fixes the latents' units when nobody pretrained them.

    sums: float64 [1 + 3 * C]: cells counted, then per channel sum, sum of squares, sum of squared residuals.
    """

    sums: np.ndarray


@dataclass(frozen=True)
class HeldOutLoss:
    """A chunk of clients' held-out loss: the sum over its clients and their number."""

    total: float
    clients: int
