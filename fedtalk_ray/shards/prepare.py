"""Corpus to shards, as a Ray Data pipeline: decode -> align and crop the face -> hear -> encode -> Parquet.

Clips stream through the cluster a few at a time, long ones in parts, in order, and are written by the driver one client
after the other, so memory grows neither with the corpus nor with a clip. A clip that cannot be used is set aside with
its reason and the rest goes on.
"""

import csv
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import ray
import ray.data
import torch
from diffusers import ModelMixin

from fedtalk_ray.corpora.listing import ClipSource, CorpusError, named, own_test_set
from fedtalk_ray.media.framing import ALIGNED, Framing
from fedtalk_ray.media.identity_embedding import NO_IDENTITY, clip_identity, load_identity_embedder
from fedtalk_ray.media.speech import LOG_MEL, load_speech_features
from fedtalk_ray.media.video import FPS, SAMPLE_RATE
from fedtalk_ray.model.autoencoder import (
    encode_frames,
    encode_pixels,
    encoder_fingerprint,
    load_autoencoder,
    sees_reference,
)
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.outputs import new_folder
from fedtalk_ray.progress import ticker
from fedtalk_ray.shards.format import (
    ARRAYS,
    IDENTITY,
    LANDMARKS,
    PLACES,
    Manifest,
    ShardWriter,
)
from fedtalk_ray.shards.reading import read_parts

REJECTS = "rejects.csv"
CELLS_STEP = 4
"""Latents are so many cells a side, or a multiple: the denoiser halves their number twice."""


def prepare(
    corpus: str,
    sources: list[ClipSource],
    out: str | Path,
    *,
    size: int = 144,
    autoencoder: str = "lower-face",
    speech: str = LOG_MEL,
    identity: str = NO_IDENTITY,
    unseen: int | Sequence[str] | None = None,
    overwrite: bool = False,
    speech_known_as: str | None = None,
    framing: Framing = ALIGNED,
    before_each: Callable[[], None] | None = None,
) -> Manifest:
    """Writes the shards of `sources` (grouped by identity) to `out`; needs a connected Ray.

    before_each: where it is given, all is done in this process, without Ray, one clip after the other; it is called
    before every one.
    autoencoder, speech, identity: as `load_autoencoder`, `load_speech_features` and `load_identity_embedder` take them;
    "none" stores no embedding. Paths must be reached by the whole cluster.
    unseen: who is kept for testing only, by name or the last so many, and everybody where all are to be measured alone;
    None keeps the corpus's own test set, or, where it defines none, those with a single clip (otherwise these are
    trained on, though they cannot be clients).
    speech_known_as: by which source the shards name the sound features, where this machine has that network elsewhere.
    framing: what part of a picture the crops show.
    Raises `CorpusError` when more than half of the clips had to be rejected; then nothing is written.
    """
    encoder = load_autoencoder(autoencoder)
    step = size_step(encoder)
    if size % step or size < 2 * step:
        raise CorpusError(f"--size {size}: must be a multiple of {step}, at least {2 * step}, for {autoencoder!r}")
    names = sorted({source.identity for source in sources})
    held_back = unseen_names(own_test_set(sources) if unseen is None else unseen, names)
    # All three are loaded here too, so that a source that cannot be used is refused before any clip is read.
    fingerprint = encoder_fingerprint(encoder)
    load_speech_features(speech)
    dimensions = 0 if identity == NO_IDENTITY else load_identity_embedder(identity).dimensions
    with new_folder(out, overwrite) as folder:
        how = size, framing, autoencoder, speech, identity
        rows = _pipeline(sources, *how) if before_each is None else _one_by_one(sources, *how, before_each)
        writer: ShardWriter | None = None
        rejects: list[dict[str, str]] = []
        manifest = Manifest(
            corpus, size, FPS, SAMPLE_RATE, autoencoder, fingerprint, {},
            speech=speech_known_as or speech, identity=identity, identity_dimensions=dimensions,
            framing=framing.name,
        )  # fmt: skip
        with ticker(len(sources), "prepare") as tick:
            for row in rows:
                if row["reason"]:
                    rejects.append({key: row[key] for key in ("identity", "clip", "path", "reason")})
                    tick()
                    continue
                arrays = _arrays(row)
                if writer is None:
                    shapes = {name: list(arrays[name].shape[1:]) for name in ARRAYS}
                    manifest.shapes = shapes
                    writer = ShardWriter(folder, manifest, held_back)
                writer.add(row["identity"], row["clip"], arrays, row["begin"], row["total"], row["footage"])
                if row["begin"] + row["length"] == row["total"]:
                    tick()
        if writer is None or 2 * len(rejects) > len(sources):
            reasons = "; ".join(f"{reject['clip']}: {reject['reason']}" for reject in rejects[:3])
            raise CorpusError(
                f"{len(rejects)} of {len(sources)} clips were rejected, more than half, so no shards were written "
                f"(first: {reasons})"
            )
        manifest.rejected = len(rejects)
        with open(folder / REJECTS, "w", newline="") as file:
            table = csv.DictWriter(file, ("identity", "clip", "path", "reason"))
            table.writeheader()
            table.writerows(rejects)
        writer.close()
    return manifest


def size_step(encoder: ModelMixin) -> int:
    """Crops must be so many pixels a side, or a multiple, for the latents to be whole cells that can be halved."""
    if sees_reference(encoder):
        return encoder.size_step
    side = 64
    with torch.no_grad():
        cells = encode_pixels(encoder, torch.zeros(1, 3, side, side)).shape[-1]
    return CELLS_STEP * side // cells


def unseen_names(unseen: int | Sequence[str] | None, names: list[str]) -> set[str] | None:
    """The identities that `unseen` means, out of the sorted `names`. Raises `CorpusError` for one that is not there."""
    if unseen is None:
        return None
    if isinstance(unseen, int):
        if unseen > len(names):
            raise CorpusError(f"--unseen {unseen}: the corpus has {len(names)} identities")
        return set(names[len(names) - unseen :])
    if unknown := sorted(set(unseen) - set(names)):
        raise CorpusError(f"--unseen {unknown[0]}: no such identity; the corpus has {named(names)}")
    return set(unseen)


def parse_unseen(text: str, names: Sequence[str]) -> int | list[str]:
    """What --unseen says: comma-separated names, or how many. What is a name of the corpus is never a number."""
    listed = [name for part in text.split(",") if (name := part.strip())]
    return int(text) if text.isdecimal() and text not in names else listed


def _pipeline(  # type: ignore[no-untyped-def]
    sources: list[ClipSource], size: int, framing: Framing, autoencoder: str, speech: str, identity: str
):
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [source.row() for source in sources]
    # Two clips a block: small enough to stream, large enough to pay for a task.
    dataset = ray.data.from_items(items, override_num_blocks=max(1, len(items) // 2))
    dataset = dataset.flat_map(read_parts, fn_kwargs={"size": size, "framing": framing.name})
    # The encoder is one resident actor: it holds the models once. It takes no CPU, so readers always find one, and a
    # GPU where one is free.
    dataset = dataset.map(
        _Encode,
        fn_constructor_args=(autoencoder, speech, identity),
        num_cpus=0,
        num_gpus=1 if ray.available_resources().get("GPU", 0) >= 1 else 0,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    return dataset.iter_rows()


def _one_by_one(
    sources: list[ClipSource],
    size: int,
    framing: Framing,
    autoencoder: str,
    speech: str,
    identity: str,
    before_each: Callable[[], None],
) -> Iterator[dict]:
    encode = _Encode(autoencoder, speech, identity)
    for source in sources:
        before_each()
        yield from map(encode, read_parts(source.row(), size, framing.name))


class _Encode:
    """Adds latents, speech features and the identity embedding to a row; its sound becomes int16."""

    def __init__(self, autoencoder: str, speech: str, identity: str) -> None:
        self._autoencoder = load_autoencoder(autoencoder).to(pick_device())
        self._speech = load_speech_features(speech)
        self._embedder = None if identity == NO_IDENTITY else load_identity_embedder(identity)
        self._heard: tuple[tuple[str, str], np.ndarray] | None = None

    def __call__(self, row: dict) -> dict:
        if row["reason"]:
            nothing = {"latents": b"", "latent_shape": [0, 0, 0], "speech": b"", "speech_shape": [0, 0]}
            return row | nothing | {"embedding": b"", "faces": b""}
        shape = (-1, row["size"], row["size"], 3)
        frames = np.frombuffer(row["frames"], np.uint8).reshape(shape)
        latents = encode_frames(self._autoencoder, frames).astype(np.float16)
        begin, end = row["begin"], row["begin"] + row["length"]
        wave = np.frombuffer(row["waveform"], np.float32)
        speech = self._features(row, wave)[begin:end].astype(np.float16)
        per_frame = SAMPLE_RATE // FPS
        sound = wave[begin * per_frame : end * per_frame].clip(-1, 1)
        embedding = b""
        if self._embedder is not None:
            embedding = clip_identity(self._embedder, np.frombuffer(row["faces"], np.uint8).reshape(shape)).tobytes()
        return row | {
            "latents": latents.tobytes(),
            "latent_shape": list(latents.shape[1:]),
            "speech": speech.tobytes(),
            "speech_shape": list(speech.shape[1:]),
            "waveform": np.round(sound * 32767).astype(np.int16).tobytes(),
            "embedding": embedding,
            "faces": b"",
        }

    def _features(self, row: dict, wave: np.ndarray) -> np.ndarray:
        """What every frame of the whole clip hears: loudness is the clip's, so its parts are not heard alone."""
        clip = (row["identity"], row["clip"])
        if self._heard is None or self._heard[0] != clip:
            self._heard = clip, self._speech.windows(wave, row["total"])
        return self._heard[1]


def _arrays(row: dict) -> dict[str, np.ndarray]:
    length, size = row["length"], row["size"]
    return {
        "frames": np.frombuffer(row["frames"], np.uint8).reshape(length, size, size, 3),
        "latents": np.frombuffer(row["latents"], np.float16).reshape(length, *row["latent_shape"]),
        "speech": np.frombuffer(row["speech"], np.float16).reshape(length, *row["speech_shape"]),
        "waveform": np.frombuffer(row["waveform"], np.int16),
        IDENTITY: np.frombuffer(row["embedding"], np.float32),
        LANDMARKS: np.frombuffer(row["landmarks"], np.float32).reshape(length, 68, 2),
        PLACES: np.frombuffer(row["places"], np.float32).reshape(length, 2, 3),
    }
