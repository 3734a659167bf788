"""What a few seeds or clips can say: means with Student's t intervals, paired differences, the share of a loss won
back.

The same seed draws the same cohorts, noise and windows for every method, so runs of one seed are paired: the interval
of their differences leaves out what all methods share, and is usually far narrower than the methods' own intervals.
No correction is made for looking at many metrics at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.stats import t as student

from fedtalk_ray.evaluation.clip_figures import Figures

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """mean +- half_width over n values; half_width is None when n is 1, because one value says nothing about spread."""

    mean: float
    half_width: float | None
    n: int

    def excludes(self, value: float) -> bool:
        return self.half_width is not None and abs(self.mean - value) > self.half_width


@dataclass(frozen=True)
class WonBack:
    """How much of the harm done to a method another one wins back: 0 nothing, 1 all of it.

    by_seed: (rescued - harmed) / (clean - harmed) of each seed. share: their mean and interval. pooled: the ratio of
    the mean differences, which a seed with little harm cannot blow up. low, high: its interval by Fieller's theorem,
    None where the harm itself cannot be told from zero, so that any share would fit, and for one seed.
    """

    by_seed: dict[int, float]
    share: Interval
    pooled: float
    low: float | None
    high: float | None


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """mean +- t(level, n - 1) s / sqrt(n), with s the sample's standard deviation. Raises `ValueError` for no value.

    Equal values have a half-width of 0, whatever their mean is rounded to.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    n = len(values)
    if n == 1:
        return Interval(float(values[0]), None, 1)
    if min(values) == max(values):
        return Interval(float(values[0]), 0.0, n)
    return Interval(float(np.mean(values)), _quantile(n, level) * float(np.std(values, ddof=1)) / sqrt(n), n)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], level: float = LEVEL
) -> Interval | None:
    """Interval of values minus baseline over the seeds that both have; None when they share no seed."""
    seeds = sorted(set(values) & set(baseline))
    return interval([values[seed] - baseline[seed] for seed in seeds], level) if seeds else None


def won_back(
    clean: Mapping[int, float], harmed: Mapping[int, float], rescued: Mapping[int, float], level: float = LEVEL
) -> WonBack | None:
    """The share of (clean - harmed) that `rescued` wins back; losses and scores alike, since signs cancel.

    Seeds that one of the three lacks are left out, and seeds without any harm, where no share exists. None when
    nothing is left.
    """
    seeds = sorted(seed for seed in set(clean) & set(harmed) & set(rescued) if clean[seed] != harmed[seed])
    if not seeds:
        return None
    gain = np.array([rescued[seed] - harmed[seed] for seed in seeds])
    harm = np.array([clean[seed] - harmed[seed] for seed in seeds])
    by_seed = {seed: float(g / h) for seed, g, h in zip(seeds, gain, harm, strict=True)}
    pooled = float(gain.sum() / harm.sum()) if harm.sum() else float("nan")
    bounds = fieller(gain, harm, level)
    low, high = bounds if bounds else (None, None)
    return WonBack(by_seed, interval(list(by_seed.values()), level), pooled, low, high)


def fieller(above: np.ndarray, below: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """Bounds of mean(above) / mean(below) for paired samples [n] (Fieller 1954).

    They are the ratios r at which the mean of above - r * below cannot be told from 0. None when mean(below) cannot:
    the set of such ratios is then unbounded. None for n = 1.
    """
    n = len(above)
    if n < 2:
        return None
    spread = np.cov(above, below) / n * _quantile(n, level) ** 2
    x, y = above.mean(), below.mean()
    a, b, c = y * y - spread[1, 1], x * y - spread[0, 1], x * x - spread[0, 0]
    if a <= 0:
        return None
    # Where a > 0 the roots are real; rounding may still push the square just below 0.
    width = sqrt(max(b * b - a * c, 0.0))
    return float((b - width) / a), float((b + width) / a)


def _quantile(n: int, level: float) -> float:
    return float(student.ppf((1 + level) / 2, n - 1))


FEWEST_CLIPS = 3
"""An interval of fewer would say more about the clips drawn than about the model."""


def merge(figures: list[Figures]) -> Figures:
    """The mean of each figure over the dictionaries that know it; None where none does or it is not finite."""
    names = dict.fromkeys(name for single in figures for name in single)
    return {name: _mean(known_values(figures, name)) for name in names}


def half_widths(figures: list[Figures]) -> Figures:
    """Half of each mean's 95% interval over clips (`statistics.interval`); None for fewer than `FEWEST_CLIPS`.

    Clips count as drawn one by one: those of one person are more alike, so the true interval for new people is wider.
    """
    known = {name: known_values(figures, name) for name in merge(figures)}
    return {name: interval(found).half_width if len(found) >= FEWEST_CLIPS else None for name, found in known.items()}


def known_values(figures: Iterable[Figures], name: str) -> list[float]:
    return [value for single in figures if (value := single.get(name)) is not None]


def _mean(values: list[float]) -> float | None:
    mean = float(np.mean(values)) if values else None
    return mean if mean is not None and np.isfinite(mean) else None
