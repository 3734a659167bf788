"""How much privacy a run spends: epsilon at a given delta, for two observers.

Guarantee: for neighbouring populations that differ in one whole client, with noise of `multiplier` times one client's
largest effect, the released models satisfy (epsilon, delta)-differential privacy against

release view  whoever sees the models and does not know the cohorts: Poisson sampling at rate q amplifies;
server view   whoever knows the cohorts, the server above all: no amplification, only a cap on a client's rounds helps.

Gaussian noise is accounted by privacy loss variables (Gopi et al. 2021, in Opacus' implementation), and exactly where
nothing amplifies (Balle and Wang 2018). Skellam noise as the Gaussian noise that it hardly differs from
(`skellam_likeness`), or where its steps are coarse by Renyi divergence (Agarwal et al. 2021, theorem 3.5), amplified by
Zhu and Wang 2019, theorem 5, which holds for every mechanism: whichever gives less, as both are upper bounds. The GDP
accountant under-reports, so it is not offered.

>>> noise = Noise("gaussian", multiplier=1.0)
>>> round(epsilon([Rounds(noise, rate=0.01, count=1000)], delta=1e-5), 2)
1.84
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from scipy.special import gammaln, log_ndtr, logsumexp, ndtr

from fedtalk_ray.privacy.skellam_likeness import FAILURE, log_ratio

Kind = Literal["skellam", "gaussian"]

ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024)
"""Renyi orders; integers, because the amplification bound is one for integers."""

NO_PRIVACY = 200.0
"""An epsilon beyond which a bound will do: the grid of privacy losses grows with it, to gigabytes for noise of a
twentieth of one client's effect."""
PRV_ERROR = 0.01
"""Of epsilon, from cutting privacy losses into a grid: Opacus' own default."""


@dataclass(frozen=True)
class Noise:
    """multiplier: z, the deviation over one client's largest effect. For skellam also what that effect is in steps,
    as an L2 norm, and over how many values (they bound its L1 norm)."""

    kind: Kind
    multiplier: float
    sensitivity: float = 2.0**18
    dimension: int = 1_000_000


@dataclass(frozen=True)
class Rounds:
    """`count` rounds with the same noise, in each of which a client takes part with probability `rate`."""

    noise: Noise
    rate: float
    count: int


def epsilon(rounds: Iterable[Rounds], delta: float) -> float:
    """Epsilon of all these rounds together, an upper bound; within 0.02 of the least that is true where noise is
    Gaussian or its steps are fine, up to `NO_PRIVACY`."""
    parts = [part for part in rounds if part.count and part.rate]
    if not parts:
        return 0.0
    gaussian = tuple((part.noise.multiplier, part.rate, part.count) for part in parts)
    skellam = [part for part in parts if part.noise.kind == "skellam"]
    # Below a hundredth PRV's error is larger than what it measures.
    bound = epsilon_bound(parts, delta)
    if not skellam:
        return min(bound, _gaussian_epsilon(gaussian, delta))
    tau = sum(
        log_ratio((part.noise.multiplier * part.noise.sensitivity) ** 2, part.noise.dimension * part.count)
        for part in skellam
    )
    # P(A) <= e^tau P'(A) + f <= e^tau (e^e Q'(A) + d) + f <= e^(e + 2 tau) Q(A) + e^tau d + e^(e + tau) f + f, with P'
    # and Q' for Gaussian noise and f for the failures of all parts.
    failure = len(skellam) * FAILURE * (1 + math.exp(min(bound, 700.0)))
    if tau > 0.1 * bound or failure > delta / 1000:
        return bound
    return min(bound, _gaussian_epsilon(gaussian, (delta - failure) * math.exp(-tau)) + 2 * tau)


def _gaussian_epsilon(parts: tuple[tuple[float, float, int], ...], delta: float) -> float:
    """Of rounds with Gaussian noise: multiplier, rate, count."""
    if all(rate >= 1 for _, rate, _ in parts):
        return _unsampled_epsilon(_shift(parts), delta)
    if (rough := _rough(parts, delta)) > NO_PRIVACY:
        return rough
    # Imported where they are called: Opacus takes seconds, and every parameter server imports this module.
    from opacus.accountants.analysis import prv

    counts, left = [count for *_, count in parts], delta / 1000
    half = _half_width(parts, left)
    domain = prv.Domain.create_aligned(-half, half, PRV_ERROR / math.sqrt(sum(counts) * math.log(12 / left) / 2))
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.simplefilter("ignore")  # log(0) at the edge of its grid, where the weight is 0
        losses = [
            prv.TruncatedPrivacyRandomVariable(
                prv.PoissonSubsampledGaussianPRV(rate, multiplier), domain.t_min, domain.t_max
            )
            for multiplier, rate, _ in parts
        ]
        whole = prv.compose_heterogeneous([prv.discretize(loss, domain) for loss in losses], counts)
        return float(whole.compute_epsilon(delta, left, PRV_ERROR)[2])


def _half_width(parts: tuple[tuple[float, float, int], ...], left: float) -> float:
    """Beyond which privacy losses may be cut off, at a delta of `left` (Gopi et al. 2021, remark 5.6). As Opacus'
    accountant does it, but by the orders that are at hand here: it works out fractional ones anew at every call, which
    is most of its time at the rates of a federation."""
    one_each = left / (8 * sum(count for *_, count in parts))
    found = [_rough(parts, left / 4), *(_rough(((multiplier, rate, 1),), one_each) for multiplier, rate, _ in parts)]
    return max(*found, PRV_ERROR) + 3


def _rough(parts: tuple[tuple[float, float, int], ...], delta: float) -> float:
    """An upper bound: Renyi's, or that of the same rounds unsampled, which is less where there is little noise."""
    rounds = [Rounds(Noise("gaussian", multiplier), rate, count) for multiplier, rate, count in parts]
    return min(epsilon_bound(rounds, delta), _unsampled_epsilon(_shift(parts), delta))


def _shift(parts: tuple[tuple[float, float, int], ...]) -> float:
    """By how much one Gaussian of deviation 1 is shifted that tells as much as all these rounds unsampled."""
    return math.sqrt(sum(count / multiplier**2 for multiplier, _, count in parts))


def _unsampled_epsilon(shift: float, delta: float) -> float:
    """Of one Gaussian of deviation 1 shifted by so much, as which all unsampled rounds together look: the root of
    Phi(s / 2 - e / s) - exp(e) Phi(-s / 2 - e / s) = delta (Balle and Wang 2018, theorem 8)."""
    from scipy.optimize import brentq

    def over(epsilon: float) -> float:
        # The second term as exp of a sum, as exp(e) alone may be larger than any number.
        beyond = math.exp(min(epsilon + float(log_ndtr(-shift / 2 - epsilon / shift)), 0.0))
        return float(ndtr(shift / 2 - epsilon / shift)) - beyond - delta

    if over(0.0) <= 0:
        return 0.0
    high = 1.0
    while over(high) > 0:
        high *= 2
    return float(brentq(over, 0.0, high, xtol=1e-9)) + 1e-9


def epsilon_bound(rounds: Iterable[Rounds], delta: float) -> float:
    """The upper bound by Renyi divergence, for either noise."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    total = np.zeros(len(ORDERS))
    for part in rounds:
        total += part.count * _renyi(part.noise, part.rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the best order is the last one of the list: still a bound
        return float(get_privacy_spent(orders=list(ORDERS), rdp=list(total), delta=delta)[0])


def noise_multiplier(target: float, delta: float, *, rate: float, count: int, make: Callable[[float], Noise]) -> float:
    """The smallest z, to 0.001, for which `count` rounds at `rate` stay within epsilon `target`.

    make: the noise for a z. Raises `ValueError` when no z up to 1000 is enough.
    """
    # Here, because it takes a third of a second, and drivers and servers that only count come by this module.
    from scipy.optimize import brentq

    def over(multiplier: float) -> float:
        return epsilon([Rounds(make(multiplier), rate, count)], delta) - target

    def over_bound(multiplier: float) -> float:
        return epsilon_bound([Rounds(make(multiplier), rate, count)], delta) - target

    # The bound takes a hundredth of the time, and what it needs is at most a few times what is needed.
    high = 0.4
    while over_bound(high) > 0:
        high *= 2
        if high > 2000:
            raise ValueError(f"no noise multiplier up to 1000 gives epsilon {target:g} at delta {delta:g}")
    high = brentq(over_bound, 0.01, high, xtol=1e-3) + 1e-2 if over_bound(0.01) > 0 else 0.2
    low = max(0.2, 0.7 * high)
    while over(low) <= 0:
        if low == 0.2:
            return low
        low, high = max(0.2, 0.7 * low), low
    found = math.ceil(1000 * brentq(over, low, high, xtol=2e-4)) / 1000
    # The root itself may lie a hair above the target, and so may what it is rounded up to.
    while over(found) > 0:
        found += 0.001
    return found


@lru_cache(maxsize=64)
def _renyi(noise: Noise, rate: float) -> np.ndarray:
    """Renyi divergence of one round at every order; not to be written into."""
    if noise.kind == "gaussian":
        from opacus.accountants.analysis.rdp import compute_rdp

        return np.array(compute_rdp(q=rate, noise_multiplier=noise.multiplier, steps=1, orders=list(ORDERS)))
    whole = cache(lambda order: skellam_divergence(order, noise))
    return np.array([whole(order) if rate >= 1 else amplified(order, rate, whole) for order in ORDERS])


def skellam_divergence(order: float, noise: Noise) -> float:
    """Renyi divergence of Skellam noise of variance mu = (z D2)^2 shifted by D2 (Agarwal et al. 2021, theorem 3.5).

    alpha D2^2 / (2 mu) + min(((2 alpha - 1) D2^2 + 6 D1) / (4 mu^2), 3 D1 / (2 mu)), with D1 <= min(sqrt(d) D2, D2^2)
    for integers.
    """
    second = noise.sensitivity**2
    first = min(math.sqrt(noise.dimension) * noise.sensitivity, second)
    variance = noise.multiplier**2 * second
    beyond = min(((2 * order - 1) * second + 6 * first) / (4 * variance**2), 3 * first / (2 * variance))
    return order * second / (2 * variance) + beyond


def amplified(order: int, rate: float, divergence: Callable[[int], float]) -> float:
    """Renyi divergence after Poisson sampling at `rate`, for any mechanism (Zhu and Wang 2019, theorem 5)."""
    logs = [math.log1p(-rate) * (order - 1) + math.log(order * rate - rate + 1)]
    for j in range(2, order + 1):
        log_choose = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
        factor = 0.0 if j == 2 else math.log(3)
        term = factor + log_choose + (order - j) * math.log1p(-rate) + j * math.log(rate) + (j - 1) * divergence(j)
        logs.append(term)
    # Sampling never hurts.
    return min(float(logsumexp(logs)) / (order - 1), divergence(order))


def merged(parts: Sequence[Rounds]) -> list[Rounds]:
    """The same rounds with equal ones counted together."""
    counts: dict[tuple[Noise, float], int] = {}
    for part in parts:
        counts[part.noise, part.rate] = counts.get((part.noise, part.rate), 0) + part.count
    return [Rounds(noise, rate, count) for (noise, rate), count in counts.items()]
