"""What must never leave a client, to be looked for in all that crosses."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.model.adapters import load_identity
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.reader import read_pieces


def private_bytes(
    slot: ClientSlot, config: TrainConfig, clients: list[str], number: int = 2
) -> Iterator[tuple[str, bytes]]:
    """Stretches of what must not leave: pictures, sound, latents, features, identity adapters as before a round."""
    manifest = load_manifest(config.shards)
    for client in clients:
        adapter = load_identity(
            slot._model.trainer.model, RunFolder(Path(config.run)).client(client).adapter_before(number)
        )
        assert adapter is not None
        trained = adapter[np.flatnonzero(adapter)[:16]]
        yield f"identity adapter of {client}", adapter[: len(trained)].tobytes()
        for piece in read_pieces(config.shards, manifest, client, "train"):
            for column in ("frames", "latents", "speech", "waveform", "landmarks"):
                yield f"{column} of {client}", getattr(piece, column).tobytes()[20_000:20_064]
