"""What all attacks on a run have in common: how much they may do, what they are given, and what they bring back.

A figure that is no finite number breaks the audit: an attack that did not run proves nothing.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedtalk_ray.settings import TrainConfig


class NotFinite(ValueError):
    """Scores that are no finite numbers: the audit fails, whatever they were to show."""


@dataclass(frozen=True)
class Effort:
    """How much work the attacks may do. `FULL` takes minutes on two cores, `FAST` a minute and a half at most."""

    shadows: int
    """Shadow runs for the likelihood-ratio attack on membership."""
    shadow_rounds: int
    """Rounds of a shadow run at most; no more than the run itself had."""
    windows: int
    """Windows of a person that a loss is averaged over."""
    draws: int
    """Noises that each window is given."""
    people: int
    """Members and outsiders, each, that are looked at, at most."""
    canaries: int
    """Clients made up to be found again."""
    repeats: int
    """Rounds over which canaries are looked for in the release view, at most."""
    iterations: int
    """Steps of the optimiser that inverts an update."""
    lessons: int
    """Rounds of local training in which the control of identity leakage is taught a face."""


FULL = Effort(
    shadows=2, shadow_rounds=2, windows=6, draws=4, people=24, canaries=1000, repeats=48, iterations=150, lessons=5
)
FAST = Effort(
    shadows=0, shadow_rounds=0, windows=2, draws=2, people=8, canaries=300, repeats=4, iterations=25, lessons=2
)


@dataclass(frozen=True)
class Round:
    """One round of real local training from the run's model, which several attacks look at.

    shared: float32 [D], what every client started from. frozen: SHA-256 of what the clients' models have frozen.
    updates: each client's Delta_k, float32 [D]. weights: its omega_k, as the client computes it.
    """

    config: TrainConfig
    shared: np.ndarray
    frozen: bytes
    updates: dict[str, np.ndarray]
    weights: dict[str, float]


@dataclass(frozen=True)
class Figure:
    """One number that an attacker reached.

    low, high: its 95% interval, where there is one. chance: what guessing reaches. claim: what the accountant allows.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    claim: float | None = None


@dataclass
class Outcome:
    """What one attack brought back.

    attack: its module's name. broken: promises that do not hold, a line each. notes: what a reader must know.
    series: numbers for plots, by name. pictures: uint8 [H, W, 3], by name. whose: the client that they show.
    """

    attack: str
    knows: str
    figures: list[Figure] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    whose: str = ""

    def failures(self) -> list[str]:
        """What makes the audit fail: broken promises, and figures that are no finite numbers."""
        told = [
            f"{figure.name} is {figure.value}: no finite number, so the attack proves nothing"
            for figure in self.figures
            if not math.isfinite(figure.value)
        ]
        told += [
            f"{name} holds values that are no finite numbers, so the attack proves nothing"
            for name, values in self.series.items()
            if not np.isfinite(values).all()
        ]
        if not self.figures:
            told.append("no figure was measured, so the attack proves nothing")
        return [f"{self.attack}: {line}" for line in (*self.broken, *told)]

    def as_json(self) -> dict[str, Any]:
        """Everything but the pictures, as plain data; what is not finite becomes null."""
        return {
            "attack": self.attack,
            "knows": self.knows,
            "figures": [{name: finite(value) for name, value in vars(figure).items()} for figure in self.figures],
            "failures": self.failures(),
            "notes": self.notes,
            "series": {name: [finite(value) for value in values] for name, values in self.series.items()},
        }


def finite(value: Any) -> Any:
    """None for a number that JSON cannot hold, everything else as it is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
