"""The way to a person's clips: what she trains on, what judges her, and what shows who she is.

A name is a client of the run (an identity of the shards, or a virtual client that holds parts of some), or any other
identity: somebody whom nobody trains on, or a newcomer with shards of her own. Training, personalising, evaluating,
comparing and auditing all ask here.
"""

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtalk_ray.client_settings import PopulationConfig
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import EVERY_COLUMN, Manifest, Piece, load_manifest
from fedtalk_ray.shards.population import Population, Portion
from fedtalk_ray.shards.reader import read_pieces
from fedtalk_ray.slot_settings import StreamConfig

if TYPE_CHECKING:
    # It brings torch, which a driver does without.
    from fedtalk_ray.shards.windows import Wanted, WindowBatch

ENROLMENT_CLIPS = 8


class People:
    """Everybody in some shards, and who of them is a client."""

    def __init__(self, shards: str | Path, manifest: Manifest, clients: Population | None = None) -> None:
        """clients: None where nobody is one, so that every name is an identity."""
        self.shards, self.manifest, self.clients = shards, manifest, clients
        self.unseen = frozenset(manifest.unseen())

    def identities(self, name: str) -> list[str]:
        """Whose clips a name stands for."""
        return list(dict.fromkeys(portion.identity for portion in self._portions(name)))

    def clients_of(self, identity: str) -> Iterator[str]:
        """The clients that hold clips of an identity, in order."""
        return iter(()) if self.clients is None else self.clients.holders(identity)

    def turn(self, name: str) -> tuple[int, int]:
        """Which of the clients with clips of the same person this is, from 0, and how many they are.

        (0, 1) for everybody else, and for who holds clips of several.
        """
        identities = self.identities(name)
        holders = list(self.clients_of(identities[0])) if len(identities) == 1 else []
        return (holders.index(name), len(holders)) if name in holders else (0, 1)

    def pieces(self, name: str, split: str, columns: tuple[str, ...] = EVERY_COLUMN) -> Iterator[Piece]:
        """The pieces of a split in stored order: of training pieces its own part, of the others all."""
        for portion in self._portions(name, split):
            yield from read_pieces(self.shards, self.manifest, portion.identity, portion.split, columns, portion.pieces)

    def clip(self, name: str, clip: str, columns: tuple[str, ...] = EVERY_COLUMN) -> list[Piece]:
        """The pieces of one clip in order; none where there is no such clip."""
        for identity in self.identities(name):
            for entry in self.manifest.identities[identity]:
                if entry.name == clip:
                    found = read_pieces(self.shards, self.manifest, identity, entry.split, columns)
                    return sorted((piece for piece in found if piece.clip == clip), key=lambda piece: piece.begin)
        return []

    def batches(
        self,
        name: str,
        *,
        window: int,
        windows: int,
        batch_size: int,
        seed: int,
        stream: StreamConfig,
        wanted: "Wanted | None" = None,
    ) -> Iterator[Any]:
        """At least `windows` training windows of so many frames, in an order that the seed says (`stream_batches`).

        wanted: what is in them; None for latents, sound and a random reference.
        """
        from fedtalk_ray.shards.stream import stream_batches

        return stream_batches(
            self.shards,
            self.manifest,
            self._portions(name),
            window=window,
            windows=windows,
            batch_size=batch_size,
            seed=seed % 2**32,
            stream=stream,
            wanted=wanted,
        )

    def judged_by(self, name: str) -> str:
        """The split that a client, or somebody whom nobody trains on, is judged by."""
        return "test" if name in self.unseen else "val"

    def windows(self, name: str, window: int, count: int, lips: bool = False) -> "WindowBatch":
        """`count` held-out windows of so many frames, always the same. lips: with how the lips move."""
        from fedtalk_ray.shards.windows import Wanted, held_out_windows

        columns = Wanted(lips=lips).columns
        return held_out_windows(self.pieces(name, self.judged_by(name), columns), window, count, lips)

    def enrolment(self, name: str) -> np.ndarray:
        """The first frame of a few training clips, latents float32 [M, C, h, w]: who this is."""
        # Who holds a part of somebody's clips may hold only later parts of them.
        virtual = self.clients is not None and self.clients.partial
        pieces = self.pieces(name, "train", ("latents",))
        first = (piece.latents[0] for piece in pieces if piece.begin == 0 or virtual)
        return np.stack(list(islice(first, ENROLMENT_CLIPS))).astype(np.float32)

    def frames(self, name: str) -> int:
        """Training frames n_k."""
        if self.clients is not None and name in self.clients:
            return self.clients.frames(name)
        return self.manifest.frames(name, "train")

    def training_pieces(self, name: str) -> int:
        """How many training pieces (`format.Piece`) a client or an identity has."""
        return sum(
            self.manifest.pieces(portion.identity, "train") if portion.pieces is None else len(portion.pieces)
            for portion in self._portions(name)
        )

    def _portions(self, name: str, split: str = "train") -> tuple[Portion, ...]:
        if self.clients is not None and name in self.clients:
            if split != "test":
                return self.clients.portions(name) if split == "train" else self.clients.held_out(name)
            names = self.identities(name)
        else:
            names = [name]
        return tuple(
            Portion(each, split=split) for each in names if split == "train" or self.manifest.pieces(each, split)
        )


def people_of(config: TrainConfig, shards: str | Path | None = None) -> People:
    """Everybody in the run's shards, with the run's clients; or in others, where every able identity is a client.

    Raises `ShardError`.
    """
    if shards is None or str(shards) == config.shards:
        manifest = load_manifest(config.shards)
        return People(config.shards, manifest, population_of(config, manifest))
    manifest = load_manifest(shards)
    return People(shards, manifest, Population(manifest, PopulationConfig()) if manifest.clients() else None)


def only_watched(config: TrainConfig) -> People:
    """Everybody in the run's shards, none of whom is a client: where clients are sites, with clips of their own.

    Raises `ShardError`.
    """
    return People(config.shards, load_manifest(config.shards))


def site_people(shards: str | Path, name: str) -> People:
    """Everybody in a site's shards, who are one client of that name together. Raises `ShardError`."""
    manifest = load_manifest(shards)
    return People(shards, manifest, Population(manifest, PopulationConfig(pooled=True), pooled_as=name))


def speakers(run: RunFolder, personal: bool) -> Callable[[str], str | None]:
    """identity -> the client whose own adapter speaks for it: the one of its name, as `personalize` writes it, else the
    first that holds clips of it and has an adapter.

    None for an identity without one, and for all unless `personal`; a pretrained pipeline has no clients.
    """
    if not (personal and run.exists()):
        return lambda identity: None
    config = run.config()
    # Only clients that are no identities need the run's own shards to be known: others are named as they are.
    population = config.population
    plain = population.clients is None and population.pieces_per_client is None and not population.pooled
    people = None if plain else people_of(config)

    def speaker(identity: str) -> str | None:
        clients = chain([identity], () if people is None else people.clients_of(identity))
        return next((client for client in clients if run.client(client).adapters()), None)

    return speaker


def population_of(config: TrainConfig, manifest: Manifest) -> Population:
    """The run's clients. Raises `ShardError` for shards that hold none."""
    return Population(manifest, config.population, config.seed, config.cohort.clients)
