"""What to do when clients are lost or late, decided in one place and asked by whoever waits for them.

A lost chunk of clients is given to another slot, `retries` times; then its clients are left out. A lost slot is
replaced. A round that closes with fewer than `quorum` of those it asked is no round: the run ends, and its checkpoint
is intact. Nothing here waits, counts time or knows Ray.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from fedtalk_ray.errors import RunError
from fedtalk_ray.slot_settings import FailureConfig


class QuorumLost(RunError):
    """Too few clients answered for the round to count."""


@dataclass(frozen=True)
class FailurePolicy:
    """The decisions that the configuration's figures ask for."""

    config: FailureConfig

    def tries_again(self, attempts: int) -> bool:
        """Whether what was lost `attempts` times is tried again."""
        return attempts <= self.config.retries

    def fewest(self, asked: int) -> int:
        """How many of `asked` clients must have answered; at least one."""
        return max(1, ceil(self.config.quorum * asked))

    def check_quorum(self, round_number: int, answered: int, asked: int, lost: Mapping[str, int]) -> None:
        """Raises `QuorumLost` where too few answered. lost: why the others did not -> how many."""
        if answered < self.fewest(asked):
            raise QuorumLost(
                f"round {round_number}: {answered} of {asked} clients answered ({describe(lost)}), and failures.quorum "
                f"{self.config.quorum:g} asks for {self.fewest(asked)}; the last checkpoint is intact: go on with "
                "--resume"
            )


def describe(lost: Mapping[str, int]) -> str:
    """Why clients are missing, in words. lost: reason -> how many."""
    return ", ".join(f"{count} {why}" for why, count in sorted(lost.items())) or "no reason known"
