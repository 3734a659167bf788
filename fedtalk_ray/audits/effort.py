"""How much work the attacks of an audit may do: the whole audit, and the quick one (`--fast`)."""

from dataclasses import dataclass


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
