"""Who the clients are: every identity of the shards, parts of it, all of them together, or virtual clients.

An identity with many pieces may be several clients, to whom they are dealt without overlap; one client may hold
everything, which is central training. A virtual client is worked out from its number and the seed when it is drawn, so
a population of 100,000 costs no more to open than one of ten. It holds pieces of one identity or of several; an
identity's pieces are dealt to its clients without overlap for as long as there are enough, and else the clients hold
one piece each, the same one again and again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedtalk_ray.client_settings import PopulationConfig
from fedtalk_ray.errors import ShardError
from fedtalk_ray.shards.format import Manifest, piece_bounds

PREFIX = "client"

EVERYBODY = "everybody"
"""The client that holds all clips (`population.pooled`)."""
HELD_BACK = 12
"""Where no clip was held out for a pooled client, one training piece in so many is, to judge and calibrate by."""


@dataclass(frozen=True)
class Portion:
    """A part of one identity's pieces of a split. pieces: their positions in stored order, None for all of them."""

    identity: str
    pieces: frozenset[int] | None = None
    split: str = "train"


class Population(Sequence[str]):
    """The clients' names in order. A sequence, so that nobody has to list them all."""

    def __init__(
        self,
        manifest: Manifest,
        config: PopulationConfig,
        seed: int = 0,
        identities: Sequence[str] | None = None,
        pooled_as: str = EVERYBODY,
    ) -> None:
        """identities: those to make clients of, None for all that can be one. pooled_as: the name of the one client of
        `population.pooled`. Raises `ShardError`."""
        self.manifest = manifest
        if identities is not None:
            manifest.check_clients(list(identities))
        able = manifest.clients()
        if config.pooled:
            able = sorted(name for name in manifest.identities if manifest.frames(name, "train"))
        self.identities = sorted(able if identities is None else identities)
        if not self.identities:
            raise ShardError("the shards hold no client: an identity needs two clips, one of them held out")
        self._config, self._seed, self._chosen = config, seed, identities is not None
        self._pooled_as = pooled_as
        self._positions = {name: place for place, name in enumerate(self.identities)}
        self._order = np.random.default_rng([seed, 11]).permutation(len(self.identities))
        if config.identities_per_client > len(self.identities):
            raise ShardError(
                f"population.identities_per_client is {config.identities_per_client}, and the shards hold "
                f"{len(self.identities)} that can be clients"
            )
        self._dealt = lru_cache(maxsize=64)(self._deal)
        self._lengths = lru_cache(maxsize=1024)(self._measure)
        self._listed = self._list()
        self._names = list(self._listed)

    @property
    def partial(self) -> bool:
        """Whether a client may hold a part of an identity's clips."""
        return self._config.clients is not None or self._config.pieces_per_client is not None

    def _list(self) -> dict[str, tuple[Portion, ...]]:
        """What every client trains on; nothing for virtual clients, which are worked out when they are asked for."""
        config, manifest = self._config, self.manifest
        if config.clients is not None:
            return {}
        if config.pooled:
            return {self._pooled_as: self._everything(held_back=False)}
        most = config.pieces_per_client
        listed: dict[str, tuple[Portion, ...]] = {}
        for name in self.identities:
            pieces = manifest.pieces(name, "train")
            parts = 1 if most is None else -(-pieces // most)
            if parts == 1:
                listed[name] = (Portion(name),)
                continue
            for part in range(parts):
                client = f"{name}.{part + 1:03d}"
                if client in self._positions:
                    raise ShardError(f"{client} is an identity of the shards, and would be a part of {name}: rename it")
                listed[client] = (Portion(name, frozenset(range(part, pieces, parts))),)
        return listed

    def _everything(self, held_back: bool) -> tuple[Portion, ...]:
        """All training pieces, but for those that are held back where no clip was held out; or those."""
        manifest = self.manifest
        if any(manifest.frames(name, "val") for name in self.identities):
            names = self.identities if not held_back or self._chosen else manifest.identities
            return tuple(
                Portion(name, split="val" if held_back else "train")
                for name in names
                if manifest.frames(name, "val" if held_back else "train")
            )
        found, place = [], 0
        for name in self.identities:
            pieces = range(place, place + manifest.pieces(name, "train"))
            place = pieces.stop
            # A dozen pieces and more can spare one.
            kept = {each - pieces.start for each in pieces if (each % HELD_BACK == HELD_BACK - 1) == held_back}
            if kept:
                found.append(Portion(name, frozenset(kept)))
        return tuple(found)

    def held_out(self, client: str) -> tuple[Portion, ...]:
        """What a client is judged by, scores itself with and is calibrated by: none of what it trains on."""
        if self._config.pooled:
            return self._everything(held_back=True)
        names = dict.fromkeys(portion.identity for portion in self.portions(client))
        return tuple(Portion(name, split="val") for name in names if self.manifest.pieces(name, "val"))

    def __len__(self) -> int:
        return self._config.clients or len(self._names)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._names[index] if self._config.clients is None else f"{PREFIX}{index:07d}"

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __contains__(self, client: object) -> bool:
        if client in self._listed:
            return True
        try:
            self._place(str(client))
        except ShardError:
            return False
        return True

    def portions(self, client: str) -> tuple[Portion, ...]:
        """What the client trains on. Raises `ShardError` for a name that is not in the population."""
        if client in self._listed:
            return self._listed[client]
        place = self._place(client)
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
            yield from (name for name, held in self._listed.items() if any(part.identity == identity for part in held))
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
        """A virtual client's number. Raises `ShardError` for any other name."""
        if self._config.clients is not None and client.startswith(PREFIX) and client[len(PREFIX) :].isdecimal():
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
