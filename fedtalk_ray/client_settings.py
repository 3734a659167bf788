"""Who the clients of a run are, and who of them is asked in a round."""

from typing import Literal

from pydantic import Field, model_validator

from fedtalk_ray.recipe import STATISTICS_ROUNDS, PhaseName, Section


class PopulationConfig(Section):
    """Who the clients are."""

    clients: int | None = Field(None, ge=1)
    """That many virtual clients, made of the shards' identities; an identity may be several clients. null: every
    identity is one client."""
    pieces_per_client: int | None = Field(None, ge=1)
    """Every identity is as many clients as it takes for none to hold more training pieces (clips of 8 seconds at most):
    somebody with many clips is several clients, and who has few stays one. What is promised is promised to a client: a
    sum of eight may be of one person's. Not with `clients`."""
    pooled: bool = False
    """One client that holds everybody's clips, those of people who could not be clients too: central training as a
    federation of one. Not with `clients`."""
    identities_per_client: int = Field(1, ge=1)
    """virtual clients: identities that one of them holds pieces of."""
    dirichlet: float | None = Field(None, gt=0)
    """virtual clients: concentration of their sizes, small for very unequal ones. null: as equal as pieces allow."""

    @model_validator(mode="after")
    def _one_way(self) -> "PopulationConfig":
        ways = [self.clients is not None, self.pieces_per_client is not None, self.pooled]
        if sum(ways) > 1:
            raise ValueError("`clients`, `pieces_per_client` and `pooled` are three ways to make clients; take one")
        return self


class CohortConfig(Section):
    """Who takes part in a round."""

    size: int = Field(16, ge=1)
    """Clients per round; all of them when there are not more. With `poisson`, the number expected."""
    statistics: int | None = Field(None, ge=1)
    """Clients per round of statistics (`recipe.STATISTICS_ROUNDS`), which are few and cost little; all of them when
    there are not more, and never fewer than `size`. Not with noise. null: `size`."""
    sampling: Literal["uniform", "poisson", "size", "balanced", "reliable"] | None = None
    """uniform: without replacement, sees nothing. poisson: everybody by a coin of their own, from the system's
    randomness, which is what amplifies privacy; sees nothing. size: chances as training frames, which the shards'
    manifest tells; aggregation plain only. balanced: who took part least often first, drawn among equals; sees who was
    in which cohort, as the server does in any case. reliable: chances as exp(strategy.gamma x last score); sees the
    scores, so aggregation plain only. null: poisson with noise (`privacy.mechanism`), else uniform."""
    over_select: float = Field(0.0, ge=0, le=4)
    """Asks so many more clients, as a share of `size`, and closes the round when `size` of them are done."""
    trace: str | None = None
    """CSV file `client,on,off` (seconds): when clients can be asked; one without a line never can. null: always."""
    trace_round_s: float = Field(60.0, gt=0)
    """trace: seconds of its clock that a round takes, so that a resumed run sees the same clients."""
    clients: list[str] | None = None
    """The population by identity; null takes every identity of the shards that can be a client."""

    def size_in(self, phase: PhaseName) -> int:
        """Clients per round of a phase."""
        return max(self.size, self.statistics or 0) if phase in STATISTICS_ROUNDS else self.size
