"""Who the clients are: every identity of the shards, or any number of virtual clients made out of them.

A virtual client is worked out from its number and the seed when it is drawn, so a population of 100,000 costs no more
to open than one of ten. It holds pieces of one identity or of several; an identity's pieces are dealt to its clients
without overlap for as long as there are enough, and else the clients hold one piece each, the same one again and again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedtalk_ray.errors import ShardError
from fedtalk_ray.settings import PopulationConfig
from fedtalk_ray.shards.format import Manifest, piece_bounds

PREFIX = "client"


@dataclass(frozen=True)
class Portion:
    """A part of one identity's training pieces. pieces: their positions in stored order, None for all of them."""

    identity: str
    pieces: frozenset[int] | None = None


class Population(Sequence[str]):
    """The clients' names in order. A sequence, so that nobody has to list them all."""

    def __init__(
        self, manifest: Manifest, config: PopulationConfig, seed: int = 0, identities: Sequence[str] | None = None
    ) -> None:
        """identities: those to make clients of, None for all that can be one. Raises `ShardError`."""
        self.manifest = manifest
        if identities is not None:
            manifest.check_clients(list(identities))
        self.identities = sorted(manifest.clients() if identities is None else identities)
        if not self.identities:
            raise ShardError("the shards hold no client: an identity needs two clips, one of them held out")
        self._config, self._seed = config, seed
        self._positions = {name: place for place, name in enumerate(self.identities)}
        self._order = np.random.default_rng([seed, 11]).permutation(len(self.identities))
        if config.identities_per_client > len(self.identities):
            raise ShardError(
                f"population.identities_per_client is {config.identities_per_client}, and the shards hold "
                f"{len(self.identities)} that can be clients"
            )
        self._dealt = lru_cache(maxsize=64)(self._deal)
        self._lengths = lru_cache(maxsize=1024)(self._measure)

    @property
    def virtual(self) -> bool:
        """Whether clients are made of parts of identities."""
        return self._config.clients is not None

    def __len__(self) -> int:
        return self._config.clients or len(self.identities)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.identities[index] if self._config.clients is None else f"{PREFIX}{index:07d}"

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __contains__(self, client: object) -> bool:
        try:
            self._place(str(client))
        except ShardError:
            return False
        return True

    def portions(self, client: str) -> tuple[Portion, ...]:
        """What the client trains on. Raises `ShardError` for a name that is not in the population."""
        place = self._place(client)
        if self._config.clients is None:
            return (Portion(client),)
        held = self._config.identities_per_client
        found = []
        for share in range(place * held, (place + 1) * held):
            identity = int(self._order[share % len(self.identities)])
            found.append(Portion(self.identities[identity], self._dealt(identity)[share // len(self.identities)]))
        return tuple(found)

    def holders(self, identity: str) -> Iterator[str]:
        """The clients that hold pieces of an identity, in order; none for one that is nobody's."""
        if identity not in self._positions:
            return
        if self._config.clients is None:
            yield identity
            return
        held, people = self._config.identities_per_client, len(self.identities)
        turn = int(np.flatnonzero(self._order == self._positions[identity])[0])
        # The shares are dealt in turn: every `people`-th is this identity's.
        for place in dict.fromkeys(share // held for share in range(turn, len(self) * held, people)):
            yield self[place]

    def frames(self, client: str) -> int:
        """Training frames n_k."""
        return sum(self._frames(portion) for portion in self.portions(client))

    def _place(self, client: str) -> int:
        if self._config.clients is None:
            if client in self._positions:
                return self._positions[client]
        elif client.startswith(PREFIX) and client[len(PREFIX) :].isdecimal():
            place = int(client[len(PREFIX) :])
            if place < len(self) and self[place] == client:
                return place
        raise ShardError(f"client {client!r} is not in the population ({self[0]} to {self[-1]})")

    def _deal(self, identity: int) -> list[frozenset[int]]:
        """The identity's pieces, dealt to its shares; never none to a share."""
        pieces = self.manifest.pieces(self.identities[identity], "train")
        turn = int(np.flatnonzero(self._order == identity)[0])
        total = len(self) * self._config.identities_per_client
        shares = -(-(total - turn) // len(self.identities))
        if shares >= pieces:
            single = [frozenset({piece}) for piece in range(pieces)]
            return [single[share % pieces] for share in range(shares)]
        rng = np.random.default_rng([self._seed, 13, identity])
        sizes = np.ones(shares, int)
        if self._config.dirichlet is None:
            sizes += np.diff(np.linspace(0, pieces - shares, shares + 1).round().astype(int))
        else:
            # Everybody has one piece; the others go to clients in proportions drawn from a Dirichlet distribution.
            sizes += rng.multinomial(pieces - shares, rng.dirichlet(np.full(shares, self._config.dirichlet)))
        order = rng.permutation(pieces)
        return [frozenset(part.tolist()) for part in np.split(order, np.cumsum(sizes)[:-1])]

    def _frames(self, portion: Portion) -> int:
        lengths = self._lengths(portion.identity)
        return sum(lengths) if portion.pieces is None else sum(lengths[piece] for piece in portion.pieces)

    def _measure(self, identity: str) -> list[int]:
        """Frames of each training piece: a clip is cut into equal ones, as the shard writer cuts it."""
        clips = [clip for clip in self.manifest.identities[identity] if clip.split == "train"]
        return [length for clip in clips for length in np.diff(piece_bounds(clip.frames, clip.pieces)).tolist()]
