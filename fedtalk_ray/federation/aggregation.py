"""Plain aggregation: slots send weighted sums, the server divides. No privacy is claimed for it."""

from collections.abc import Iterable, Sequence

import numpy as np

from fedtalk_ray.messages import PlainUpdate
from fedtalk_ray.privacy.clipping import weigh_and_clip


class WeightedSum:
    """A running sum of w_k * Delta_k in float64 and of w_k, in the order in which clients are added."""

    def __init__(self) -> None:
        self._sum: np.ndarray | None = None
        self.total_weight = 0.0

    def add(self, update: np.ndarray, weight: float) -> None:
        """update: float32 or float64 [D]; weight: positive and finite, else `ValueError`."""
        if not (np.isfinite(weight) and weight > 0):
            raise ValueError(f"aggregation weight is {weight}; it must be positive and finite")
        scaled = np.multiply(update, weight, dtype=np.float64)
        if self._sum is None:
            self._sum = scaled
        else:
            self._sum += scaled
        self.total_weight += weight

    def add_clipped(self, update: np.ndarray, weight: float, clip_norm: float) -> None:
        """Where the server is to add noise: the update weighted and clipped, which then counts once.

        update: float32 [D]. Raises `protocol.Aborted` for values that are not finite.
        """
        clipped, _ = weigh_and_clip(update, weight, clip_norm)
        self.add(clipped, 1.0)

    def vector(self) -> np.ndarray:
        """float32 [D]; `ValueError` when nothing was added."""
        if self._sum is None:
            raise ValueError("a weighted sum over no clients has no value")
        return self._sum.astype(np.float32)


def average(updates: Sequence[PlainUpdate], dimension: int) -> np.ndarray:
    """sum_k w_k Delta_k / sum_k w_k over all slots' partial sums, float32 [dimension], added in the given order.

    Raises `ValueError` for a vector of another length or with values that are not finite.
    """
    if not updates:
        raise ValueError("a round without updates cannot be aggregated")
    total, weight = np.zeros(dimension), 0.0
    for update in updates:
        if update.weighted_sum.shape != (dimension,) or update.weighted_sum.dtype != np.float32:
            raise ValueError(
                f"an update has shape {update.weighted_sum.shape} and dtype {update.weighted_sum.dtype}; "
                f"expected float32 [{dimension}]"
            )
        if not np.isfinite(update.weighted_sum).all():
            raise ValueError("an update holds values that are not finite")
        if not (np.isfinite(update.total_weight) and update.total_weight > 0):
            raise ValueError(f"an update has total weight {update.total_weight}; it must be positive and finite")
        total += update.weighted_sum
        weight += update.total_weight
    mean = (total / weight).astype(np.float32)
    if not np.isfinite(mean).all():
        raise ValueError("the averaged update holds values that are not finite")
    return mean


def median(updates: Sequence[np.ndarray]) -> np.ndarray:
    """The median of groups' averaged updates, value by value, float32 [D] (Yin et al. 2018).

    Of f groups each value lies between those of the groups that are right, as long as no more than (f - 1) / 2 are not.
    """
    return np.median(np.stack(updates), axis=0).astype(np.float32)


def normalised(weights: Iterable[float]) -> list[float]:
    """Weights as shares of their sum."""
    weights = list(weights)
    return [weight / sum(weights) for weight in weights]
