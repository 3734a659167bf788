"""From the figures of single clips to those of a group: means, and how far clips alone may have moved them."""

from collections.abc import Iterable

import numpy as np

from fedtalk_ray.evaluation.clip_figures import Figures
from fedtalk_ray.evaluation.statistics import interval

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
