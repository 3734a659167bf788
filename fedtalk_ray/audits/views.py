"""What two attackers hold of one client's update: the server alone, and whoever knows everything else.

The server alone is who secure aggregation is against. Under `aggregation: plain` it sees each slot's sum, with one
client in a slot that client's update, and central noise comes after. Under secure aggregation it sees the sum.

Whoever knows everything else is who differential privacy is against: sees the sum that the released models differ by,
and takes off what all other clients gave. Without noise that leaves the update itself, masks or not.
"""

import numpy as np

from fedtalk_ray.audits.attack import Round, fixed_clip_norm
from fedtalk_ray.audits.recorded_exchange import central_sum
from fedtalk_ray.federation.secure_aggregator import limits_of, make_codec
from fedtalk_ray.privacy.clipping import weigh_and_clip
from fedtalk_ray.privacy.protocol import Limits
from fedtalk_ray.settings import TrainConfig

SERVER = "the server alone"
ALL_BUT_ONE = "who knows everything else"


def parts(round: Round) -> dict[str, np.ndarray]:
    """What each client adds to the sum, float64 [D]: its update, weighted, and clipped where the run clips."""
    config = round.config
    clips = config.aggregation == "secure" or config.privacy.mechanism != "none"
    if not clips:
        return {client: round.weights[client] * update.astype(np.float64) for client, update in round.updates.items()}
    bound = fixed_clip_norm(config)
    if config.privacy.mechanism == "none":
        # The weight is sent beside the update: it is at most 1, and clipping comes first (`UpdateCodec.encode`).
        return {
            client: min(round.weights[client], 1.0) * bound * weigh_and_clip(update, 1.0, bound)[0]
            for client, update in round.updates.items()
        }
    return {
        client: bound * weigh_and_clip(update, round.weights[client], bound)[0]
        for client, update in round.updates.items()
    }


def summed(
    config: TrainConfig, updates: dict[str, np.ndarray], weights: dict[str, float], rng: np.random.Generator
) -> np.ndarray:
    """float64 [D]: the sum of these clients with its noise, by the run's own codec, or the server that adds it.

    There is no more noise in it than the guarantee counts on: as many have joined as allow just these to survive, and
    those who left would have added noise of their own. rng: of the clients' noise, so that an audit can be repeated;
    central noise comes from the system's randomness. Raises `protocol.Aborted` where the server throws the sum away.
    """
    if config.aggregation == "plain" and config.privacy.mechanism == "none":
        return np.sum([weights[client] * update.astype(np.float64) for client, update in updates.items()], axis=0)
    if config.aggregation == "plain":
        return central_sum(config, updates, weights)
    survivors, dimension = len(updates), len(next(iter(updates.values())))
    size = config.cohort.model_copy(update={"size": max(survivors, config.cohort.size)})
    codec = make_codec(config.model_copy(update={"cohort": size}), dimension)
    cohort, bound = largest_cohort(survivors, limits_of(config.privacy)), fixed_clip_norm(config)
    total = np.zeros(codec.length, np.uint32)
    for client, update in updates.items():
        total += codec.encode(update, weights[client], bound, cohort, rng)
    averaged = codec.decode(total, survivors, cohort, bound)
    if config.privacy.mechanism == "none":
        return averaged.update.astype(np.float64) * sum(min(weights[client], 1.0) for client in updates)
    return averaged.update.astype(np.float64) * codec.denominator


def largest_cohort(survivors: int, limits: Limits) -> int:
    """The largest cohort whose sum may be opened with so many survivors, of those in which they carry least noise."""
    possible = [n for n in range(survivors, 2 * survivors + 2) if limits.survivors(n) <= survivors]
    return max(possible, key=lambda n: (limits.opened(n), n), default=survivors)


class Views:
    """One round as the two attackers have it."""

    def __init__(self, round: Round, rng: np.random.Generator) -> None:
        """rng: as for `summed`."""
        self._plain = round.config.aggregation == "plain"
        self.exact = parts(round)
        self.opened = summed(round.config, round.updates, round.weights, rng)
        # What is left of the opened sum when everybody's part is taken off: noise and rounding.
        self._beside = self.opened - np.sum(list(self.exact.values()), axis=0)

    def of(self, victim: str) -> dict[str, np.ndarray]:
        """What each attacker takes for the victim's part, float64 [D]."""
        own = self.exact[victim]
        return {SERVER: own if self._plain else self.opened, ALL_BUT_ONE: own + self._beside}
