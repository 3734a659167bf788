"""What may be told of a round where the release view is promised, and what must stand beside a simulated epsilon.

Guarantee, to the clients: epsilon in the release view holds against who sees the models and not the cohorts. How many
came or survived, who refused, how long it took and how much was sent tell of the cohort and are no part of that account
(64 clients, rate 1/4, 48 rounds: with the counts 8.4 where the books say 8.0), so they stay with the server.

>>> told({"round": 1, "survivors": 9, "epsilon": 2.0})
{'round': 1, 'epsilon': 2.0}
"""

from typing import Any

from fedtalk_ray.settings import PrivacyConfig

TELLS_OF_THE_COHORT = frozenset(
    {"counts", "sites", "survivors", "refused", "cohort", "aborted", "attempts", "epsilon_server"}
    | {"bytes_up", "seconds", "stage_seconds"}
)
"""Keys of a round's record. epsilon_server is that of whoever was drawn most often."""


def told(record: dict[str, Any]) -> dict[str, Any]:
    """A round's record without what tells of its cohort."""
    return {name: value for name, value in record.items() if name not in TELLS_OF_THE_COHORT}


def simulation(privacy: PrivacyConfig, before: str = "") -> str:
    """What must stand wherever an epsilon or a noise multiplier of a simulated cohort shows, after `before`; empty for
    other runs. Rounds' records say it by `"simulation": true` (`SecureAggregator.figures`)."""
    if privacy.simulated_cohort is None:
        return ""
    return (
        f"{before}SIMULATION: the noise is that of a cohort of {privacy.simulated_cohort} out of "
        f"{privacy.simulated_population}, and the real clients of this run got less privacy than its epsilon says"
    )
