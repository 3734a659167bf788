"""One client's own clips, as its training, its scores and its weight use them. None of it leaves the client."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch

from fedtalk_ray.config import TrainConfig
from fedtalk_ray.data.population import Population
from fedtalk_ray.data.shard_reader import read_pieces
from fedtalk_ray.data.shards import ARRAYS, Manifest, Piece
from fedtalk_ray.data.stream import stream_batches
from fedtalk_ray.data.windows import WindowBatch, held_out_windows
from fedtalk_ray.federation.strategies import Strategy
from fedtalk_ray.training.local import batches_needed

ENROLMENT_CLIPS = 8


class ClientData:
    """Reads the shards for whoever a slot stands for: clients, and people whom nobody trains on."""

    def __init__(self, config: TrainConfig, manifest: Manifest, window: int) -> None:
        """window: frames that the model denoises together."""
        self._config, self._manifest, self._window = config, manifest, window
        self.population = Population(manifest, config.population, config.seed, config.cohort.clients)
        self.unseen = frozenset(manifest.unseen())

    def batches(self, client: str, seed: int) -> Iterator[WindowBatch]:
        """What one fit of the client consumes, in an order that the seed says."""
        config = self._config
        return stream_batches(
            config.shards,
            self._manifest,
            self.population.portions(client),
            window=self._window,
            windows=batches_needed(config) * config.local.batch_size,
            batch_size=config.local.batch_size,
            seed=seed % 2**32,
            stream=config.stream,
        )

    def pieces(self, client: str, split: str, columns: tuple[str, ...] = tuple(ARRAYS)) -> Iterator[Piece]:
        """A client's pieces, of all identities that it holds; its own part of them where they are trained on."""
        if client in self.unseen:
            yield from read_pieces(self._config.shards, self._manifest, client, split, columns)
            return
        for portion in self.population.portions(client):
            only = portion.pieces if split == "train" else None
            yield from read_pieces(self._config.shards, self._manifest, portion.identity, split, columns, only)

    def held_out(self, client: str) -> str:
        """The split that this client, or somebody whom nobody trains on, is judged by."""
        return "test" if client in self.unseen else "val"

    def windows(self, client: str, count: int) -> WindowBatch:
        """Held-out windows, always the same."""
        return held_out_windows(self.pieces(client, self.held_out(client), ("latents", "speech")), self._window, count)

    def enrolment(self, client: str) -> torch.Tensor:
        """The first frame of a few training clips, latents float32 [M, C, h, w]: who this client is."""
        # A virtual client may hold only later parts of its clips.
        whole = self._config.population.clients is None
        pieces = self.pieces(client, "train", ("latents",))
        first = (piece.latents[0] for piece in pieces if piece.begin == 0 or not whole)
        return torch.from_numpy(np.stack(list(islice(first, ENROLMENT_CLIPS)))).float()

    def weigh(self, strategy: Strategy, client: str, score: float | None) -> tuple[int, float]:
        """Training frames that count, and the client's aggregation weight omega_k."""
        config, samples, reference = self._config, self.population.frames(client), 1.0
        if config.aggregation == "secure" or config.privacy.mechanism != "none":
            # Public bounds, so that one client's weight is bounded whatever it holds.
            samples = min(samples, config.privacy.samples_cap)
            reference = config.privacy.weight_reference or strategy.weight(config.privacy.samples_cap, 1.0)
        return samples, strategy.weight(samples, score) / reference
