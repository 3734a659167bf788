"""What all attacks on a run have in common: what they are given, what they bring back, when that fails the audit.

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


def fixed_clip_norm(config: TrainConfig) -> float:
    """C of the audited round, which `subject.as_it_is_now` wrote into the configuration."""
    assert config.privacy.clip_norm is not None
    return config.privacy.clip_norm


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
        lines = [
            f"{figure.name} is {figure.value}: no finite number, so the attack proves nothing"
            for figure in self.figures
            if not math.isfinite(figure.value)
        ]
        lines += [
            f"{name} holds values that are no finite numbers, so the attack proves nothing"
            for name, values in self.series.items()
            if not np.isfinite(values).all()
        ]
        if not self.figures:
            lines.append("no figure was measured, so the attack proves nothing")
        return [f"{self.attack}: {line}" for line in (*self.broken, *lines)]

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
