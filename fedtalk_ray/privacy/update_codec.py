"""From one client's update to the integers that are summed, and from their sum to the averaged update.

Guarantee: without noise the result is the weighted mean of what clients sent, weights and updates as they were cut, to
within `UpdateCodec.error_bound`, and whatever they sent its norm is at most C, or there is no result; with noise one
client's effect on the sum is at most `sensitivity` steps, and the noise in any sum that may be opened has at least
`noise multiplier` times that as its deviation.

The vector has D + 2 values: a_k (`clipping`), then the weight, then a bit that says whether clipping bound.

without noise   a_k = omega_k clip(Delta_k, C) / C, and update = C sum a_k / sum omega_k; the bit counts whose update or
                weight was cut. The sum of such a_k is no longer than that of the weights: a client that sends a weight
                of nothing, or a negative one, beside a large update makes a sum that is thrown away. Values of a_k are
                written `zoom` times larger than the weight: none of a long vector is near its norm. Weights are
                multiplied by what the round before says (`weight_scale`) and are at most 1: so they use the room that
                there is, and who runs this code counts at most `most_weight` times as much as the mean client
with noise      update = C sum a_k / (n mean_weight), n the cohort's expected size: fixed before the run, so that
                no noise goes into a quotient and the model's size does not tell how many took part (what noise tells:
                docs/privacy.md, "How many took part"); the weight is 0, and the bit is written only for adaptive
                clipping
"""

import math
from dataclasses import dataclass

import numpy as np

from fedtalk_ray.errors import ConfigError
from fedtalk_ray.privacy import noise
from fedtalk_ray.privacy.accounting import Noise
from fedtalk_ray.privacy.clipping import bit_size, weigh_and_clip
from fedtalk_ray.privacy.fixed_point import SCALE_BITS, check_range, from_ring, rounded_norm, to_integers, to_ring
from fedtalk_ray.privacy.protocol import Aborted, Code, Limits
from fedtalk_ray.settings import PrivacyConfig

EXTRA = 2
"""Values after the update's own: weight and bit."""

_SIGMAS = 8.0

_PEAK = 4.0
"""Without noise: how far a value of a_k may lie above the root mean square of a vector of norm 1."""

LARGEST_SCALE = 2.0**20
"""Weights that are smaller yet are nothing."""

MOST_ROUNDING = 0.01
"""Share of an update that rounding to integers may add: a run ends in the first round of a phase that has more, and the
report warns of later ones, whose updates may be nearly nothing."""


@dataclass(frozen=True)
class Averaged:
    """update: float32 [D]. unclipped: share of survivors of whom nothing was cut, None where it was not sent.

    rounding_error: what rounding to integers is expected to have added, over the update's norm. mean_weight: of the
    survivors, as it was sent. Both None with noise.
    """

    update: np.ndarray
    unclipped: float | None
    rounding_error: float | None = None
    mean_weight: float | None = None


def weight_scale(mean_weight: float | None, most_weight: float | None) -> float:
    """What weights are multiplied by, so that the mean client's is one `most_weight`th and no one's is above 1.

    mean_weight: of the round before, not multiplied; None where there is none. A client that always claims most then
    has, of n, at most most_weight / n of an average in the long run: it is itself part of the mean. That is for clients
    who run this code, whatever they feed it; one that writes its own vector is bound by C alone (`UpdateCodec.decode`).

    >>> weight_scale(0.001, 4.0), weight_scale(0.9, 4.0), weight_scale(None, 4.0)
    (250.0, 1.0, 1.0)
    """
    if mean_weight is None or most_weight is None:
        return 1.0
    return min(max(1.0, 1 / (most_weight * mean_weight)), LARGEST_SCALE)


class UpdateCodec:
    """Clients and server build the same one from the configuration."""

    def __init__(
        self,
        config: PrivacyConfig,
        multiplier: float,
        dimension: int,
        cohort: int,
        limits: Limits,
        largest: int | None = None,
    ) -> None:
        """multiplier: z, 0 without noise. cohort: clients expected in a round. largest: the most that may come.

        Raises `ConfigError` when a sum of that many could wrap around.
        """
        self._config, self._multiplier, self._limits = config, multiplier, limits
        self.dimension, self.length = dimension, dimension + EXTRA
        self._private = config.mechanism != "none"
        # Simulated noise: as much, relative to the mean, as a larger cohort would need.
        self._thinned = 1.0 if config.simulated_cohort is None else cohort / config.simulated_cohort
        expected = config.simulated_cohort or cohort
        self._bit = bit_size(multiplier, expected) if config.clipping == "adaptive" and self._private else 0.0
        self._cohort = cohort
        # A power of two, so that nothing is rounded by it.
        self.zoom = 1.0 if self._private else 2.0 ** max(0, math.floor(math.log2(math.sqrt(dimension) / _PEAK)))
        self._norm = math.sqrt(1 + self._bit**2 / 4) if self._private else math.sqrt(self.zoom**2 + 2)
        largest = largest or cohort
        bits = config.scale_bits
        if bits is None:
            bits = SCALE_BITS if self._private else 31 - math.ceil(math.log2(largest + 1))
        self.scale = 2.0**bits
        self.sensitivity = rounded_norm(self._norm, self.length, self.scale)
        # Of the cohorts that may come the one of whom fewest may be in a sum: each of its clients adds most noise.
        worst = min(range(max(min(limits.floor, cohort), cohort // 2), largest + 1), key=limits.opened)
        if config.colluders >= limits.opened(worst):
            raise ConfigError(
                f"privacy.colluders is {config.colluders}, and a sum of {limits.opened(worst)} clients may be "
                "opened: nobody would be left to add noise; lower it"
            )
        in_the_ring = self._deviation(largest, largest) if config.mechanism == "skellam" else 0.0
        reach = largest + _SIGMAS * in_the_ring / self.scale
        if not check_range(reach, self.scale):
            raise ConfigError(
                f"privacy.scale_bits is {bits}: a sum over {largest} clients with its noise could reach "
                f"{reach:.0f} * 2^{bits}, beyond 2^31; lower it"
            )
        rate = self._share(worst) / 2 if config.mechanism == "skellam" else 0.0
        if rate > noise.LARGEST_RATE:
            raise ConfigError(
                f"privacy.scale_bits is {bits}: noise of multiplier {multiplier:g} shared by "
                f"{limits.opened(worst)} clients needs a Poisson rate of {rate:.2g}, beyond "
                f"{noise.LARGEST_RATE:.2g}; take {math.floor(bits - math.log2(rate / noise.LARGEST_RATE) / 2)} or less"
            )

    @property
    def noise(self) -> Noise | None:
        """What the accountant needs to know; None without noise."""
        if self._config.mechanism == "none":
            return None
        return Noise(self._config.mechanism, self._multiplier, self.sensitivity, self.length)

    def encode(
        self, update: np.ndarray, weight: float, clip_norm: float, cohort: int, rng: np.random.Generator
    ) -> np.ndarray:
        """uint32 [D + 2]. update: float32 [D]. weight: omega_k. cohort: clients planned, who share the noise.

        Raises `Aborted` for values that are not finite.
        """
        if not 0 <= weight < math.inf:
            raise Aborted(Code.NOT_FINITE)
        if self._private:
            clipped, bound = weigh_and_clip(update, weight, clip_norm)
            extra = [0.0, self._bit * (0.5 - bound)]
        else:
            # The weight is sent too, as a number of at most 1, and must be the one that the update was multiplied by.
            clipped, bound = weigh_and_clip(update, 1.0, clip_norm)
            weight, bound = min(weight, 1.0), bound or weight > 1
            clipped *= weight * self.zoom
            if (peak := float(np.abs(clipped).max(initial=0.0))) > 1:
                # Only where nearly all of the update lies in a few values: scaled down as a whole, as by the norm.
                clipped, bound = clipped / peak, True
            extra = [weight, float(bound)]
        integers = to_integers(np.concatenate([clipped, extra]), self.scale, rng, self._norm)
        if self._config.mechanism == "skellam":
            try:
                integers += noise.skellam(self.length, self._share(cohort), rng)
            except ValueError as error:
                raise Aborted(Code.TOO_FEW, f"{cohort} clients cannot make the noise: {error}") from error
        return to_ring(integers)

    def decode(self, total: np.ndarray, survivors: int, cohort: int, clip_norm: float) -> Averaged:
        """The averaged update from the opened sum, uint32 [D + 2]. Raises `Aborted` for one no honest clients make.

        Central noise comes first: whether a sum is thrown away is told, and must not be told of the exact one.
        """
        values = from_ring(total, self.scale)
        values = values + self._central_noise(len(values))
        deviation = self._deviation(survivors, cohort) / self.scale
        honest = survivors * self.sensitivity / self.scale
        # Noise hardly lies along the sum, so that squares add up: Laurent and Massart's bound on them at e^-32, with
        # Skellam's kurtosis.
        kurtosis = 1 / (deviation * self.scale) ** 2 if deviation else 0.0
        squares = self.length + _SIGMAS * math.sqrt((2 + kurtosis) * self.length) + _SIGMAS**2
        longest = math.sqrt(honest**2 + 2 * _SIGMAS * deviation * honest + deviation**2 * squares)
        # Without noise no value that is written is larger than one.
        largest = honest + _SIGMAS * deviation if self._private else survivors * (1 + 1 / self.scale)
        if np.abs(values).max() > largest or np.linalg.norm(values) > longest:
            raise Aborted(Code.SUM_TOO_LARGE)
        summed, weight, bits = values[: self.dimension] / self.zoom, values[-2], values[-1]
        if not self._private:
            if weight <= 0:
                raise Aborted(Code.TOO_FEW, "all weights are zero")
            # Each of an honest client's values, its weight among them, is off by less than a step.
            rounded = survivors * (math.sqrt(self.dimension) / self.zoom + 1) / self.scale
            if np.linalg.norm(summed) > weight + rounded:
                raise Aborted(Code.SUM_TOO_LARGE)
            # What rounding may add over weights of nearly nothing is more than all of them: within C whatever it is.
            summed *= min(1.0, weight / max(float(np.linalg.norm(summed)), weight))
            update = (clip_norm * summed / weight).astype(np.float32)
            # Each value of each client is off by up to a step either way: by half of one, root mean square, at most.
            rounding = clip_norm * math.sqrt(survivors * self.dimension) / (2 * self.scale * self.zoom * weight)
            norm = float(np.linalg.norm(update))
            return Averaged(update, 1 - bits / survivors, rounding / norm if norm else None, weight / survivors)
        unclipped = bits / (self._bit * self._cohort) + 0.5 if self._bit else None
        return Averaged((clip_norm * summed / self.denominator).astype(np.float32), unclipped)

    def with_noise(self, summed: np.ndarray, clip_norm: float) -> np.ndarray:
        """float32 [D]: the update from a sum of a_k in the clear, with the server's noise where it adds it.

        Whoever took part, the denominator is the one that the run began with.
        """
        noisy = summed + self._central_noise(len(summed))
        return (clip_norm * noisy / self.denominator).astype(np.float32)

    @property
    def denominator(self) -> float:
        """With noise: what a sum is divided by."""
        return self._cohort * self._config.mean_weight

    def error_bound(self, survivors: int, total_weight: float, clip_norm: float) -> float:
        """Without noise: how far, in L2 norm, the result may lie from the exact weighted mean of unclipped updates.

        Every value of every client is off by less than a step; so is every weight, which scales the mean (of norm at
        most C / min weight, here bounded by C survivors / total weight).
        """
        step = survivors / self.scale
        values = math.sqrt(self.dimension) / self.zoom
        return clip_norm * step * (values + survivors / total_weight) / (total_weight - step)

    def _central_noise(self, dimension: int) -> np.ndarray:
        """What a trusted server adds to a sum, in units; zero under the other mechanisms."""
        if self._config.mechanism != "gaussian":
            return np.zeros(dimension)
        return noise.gaussian(dimension, self._central_deviation / self.scale)

    @property
    def _central_deviation(self) -> float:
        """Of a trusted server's noise, in steps."""
        return self._multiplier * self._thinned * self.sensitivity

    def _share(self, cohort: int) -> float:
        # A simulated cohort hardly notices who takes their part of the noise off; the few real ones would.
        colluders = 0 if self._config.simulated_cohort else self._config.colluders
        return noise.client_variance(
            noise_multiplier=self._multiplier * self._thinned,
            sensitivity=self.sensitivity,
            survivors=self._limits.opened(cohort),
            colluders=colluders,
        )

    def _deviation(self, survivors: int, cohort: int) -> float:
        """Of the noise in a sum over so many survivors, in steps."""
        if self._config.mechanism == "gaussian":
            return self._central_deviation
        if self._config.mechanism != "skellam":
            return 0.0
        return math.sqrt(survivors * self._share(cohort))
