"""The players of a run's report: a held-out clip as it is, spoken by the run's model, and through its autoencoder.

Whom they show: somebody nobody trained on, whose face the run's own samples show too. A client's face is private and is
shown only where the client is named.
"""

import base64
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fedtalk_ray.config import TrainConfig
from fedtalk_ray.data.population import Population
from fedtalk_ray.data.shard_reader import read_pieces
from fedtalk_ray.data.shards import Manifest, load_manifest
from fedtalk_ray.data.video import FPS, VideoError, read_pictures, write_video
from fedtalk_ray.errors import RunError, ShardError
from fedtalk_ray.evaluation.evaluate import speak
from fedtalk_ray.evaluation.generate import identity_folder
from fedtalk_ray.evaluation.samples import VIDEO_SCALE, enlarge, exported_after
from fedtalk_ray.model.autoencoder import decode_latents
from fedtalk_ray.observability import ticker
from fedtalk_ray.training.backbone import check_fits
from fedtalk_ray.training.client_state import client_folder, written_after
from fedtalk_ray.training.export import load_model, pipeline_folder

SIDE = 256
"""Pixels to which small faces are enlarged; larger ones stay as they are."""

BUDGET = 6_000_000
"""Bytes of all videos together, so that with base64's third the page stays below 10 MB."""


@dataclass(frozen=True)
class Player:
    """video, poster (its first frame): data URIs; None where the video would make the page too large."""

    title: str
    caption: str
    video: str | None
    poster: str | None


@dataclass(frozen=True)
class Row:
    title: str
    note: str
    players: list[Player]


@dataclass
class Videos:
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Subject:
    """Whom a row shows. adapter: the client's own, None for the shared model alone."""

    name: str
    identity: str
    split: str
    adapter: Path | None = None


def open_shards(config: TrainConfig) -> tuple[Manifest | None, str]:
    """The run's manifest, or None with the reason in words."""
    try:
        return load_manifest(config.shards), ""
    except ShardError as error:
        return None, str(error)


def make_videos(run: Path, config: TrainConfig, manifest: Manifest | None, why: str, client: str | None) -> Videos:
    """New videos by the run's model; where the shards or the model cannot be had, those that the run wrote.

    why: the reason for a missing manifest. Raises `ShardError` for a client that the shards do not have, `RunError`
    for one that the run has nothing of.
    """
    if manifest is None:
        return kept_samples(run, client, f"The run's shards cannot be read ({why}).")
    unseen = manifest.unseen()
    subjects = [_Subject(unseen[0], unseen[0], "test")] if unseen else []
    if client is not None:
        subjects.append(_client(run, config, manifest, client))
    videos = Videos()
    if not unseen:
        videos.notes.append(
            "The shards hold nobody whom no client trained on, and clients' faces are private: fedtalk report --client "
            "NAME shows one."
        )
    spender = _Budget()
    try:
        with ticker(len(subjects), "videos") as tick, tempfile.TemporaryDirectory() as folder:
            for subject in subjects:
                players = list(_players(run, config, manifest, subject, Path(folder), spender))
                videos.rows.append(Row(*_heading(run, manifest, subject), players))
                tick()
    except (RunError, ShardError) as error:
        return kept_samples(run, client, f"No new videos could be made ({error}).")
    return videos


def kept_samples(run: Path, client: str | None, reason: str) -> Videos:
    """The newest sample that the run wrote of the unseen person, and of the client where one is named."""
    videos, spender = Videos(notes=[f"{reason} What follows are samples that the run itself wrote."]), _Budget()
    folders = {"": run / "samples"}
    if client is not None:
        clients = run / "clients"
        if not clients.is_dir() or client not in {folder.name for folder in clients.iterdir()}:
            raise RunError(f"client {client!r} took no part in {run}; there is no folder of that name in {clients}")
        folders[client] = client_folder(run, client) / "samples"
    for name, folder in folders.items():
        kept = sorted(folder.glob(f"round-{'[0-9]' * 5}.mp4"))
        if not kept:
            videos.notes.append(f"No sample lies in {folder}.")
            continue
        after = int(kept[-1].stem.removeprefix("round-"))
        title = f"Client {name}: shown because it was asked for by name" if name else "A person nobody trained on"
        caption = f"Spoken from the first frame of a held-out clip, after round {after}."
        try:
            player = Player("model" if name else "shared model", caption, *spender.embed(kept[-1]))
        except VideoError as error:
            videos.notes.append(f"The newest sample cannot be shown: {error}.")
            continue
        videos.rows.append(Row(title, "", [player]))
    return videos


class _Budget:
    """Turns videos into data URIs for as long as there is room in the page."""

    def __init__(self) -> None:
        self._left = BUDGET

    def embed(self, file: Path) -> tuple[str | None, str | None]:
        """The video, and its first frame for who prints the page or has not loaded the video yet."""
        content, still = file.read_bytes(), io.BytesIO()
        Image.fromarray(read_pictures(file, max_seconds=1 / FPS)[0]).save(still, "JPEG", quality=85)
        if len(content) + still.tell() > self._left:
            return None, None
        self._left -= len(content) + still.tell()
        return _data_uri("video/mp4", content), _data_uri("image/jpeg", still.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _client(run: Path, config: TrainConfig, manifest: Manifest, client: str) -> _Subject:
    population = Population(manifest, config.population, config.seed, config.cohort.clients)
    if client in population:
        identity = population.portions(client)[0].identity
    elif client in manifest.identities:
        identity = client
    else:
        raise ShardError(
            f"client {client!r} is not in the shards {config.shards}; the run's clients are {_some(population)}"
        )
    # Test clips were looked at by nobody, val clips by the client when it scored itself.
    split = "test" if manifest.pieces(identity, "test") else "val"
    return _Subject(client, identity, split, identity_folder(run, client))


def _players(
    run: Path, config: TrainConfig, manifest: Manifest, subject: _Subject, folder: Path, spender: _Budget
) -> Iterator[Player]:
    model = load_model(run)
    check_fits(manifest, model, str(pipeline_folder(run)))
    piece = next(read_pieces(config.shards, manifest, subject.identity, subject.split))
    sound = piece.waveform.astype(np.float32) / 32767

    def player(title: str, caption: str, frames: np.ndarray) -> Player:
        scale = max(1, min(VIDEO_SCALE, SIDE // frames.shape[1]))
        write_video(folder / "player.mp4", enlarge(frames, scale), sound)
        return Player(title, caption, *spender.embed(folder / "player.mp4"))

    def spoken(by: Path | None) -> np.ndarray:
        return speak(load_model(run, by) if by else model, piece.frames[0], piece.waveform, len(piece.frames), seed=0)

    yield player("ground truth", "The real clip.", piece.frames)
    yield player("shared model", "Generated from the clip's first frame and its sound.", spoken(None))
    if subject.adapter is not None:
        after = written_after(subject.adapter)
        told = f", last trained in round {after}" if after else ""
        yield player("personalised", f"The same with the client's own identity adapter{told}.", spoken(subject.adapter))
    decoded = decode_latents(model.autoencoder, torch.from_numpy(piece.latents.astype(np.float32)))
    yield player(
        "autoencoder alone", "Every real frame encoded and decoded: no picture of the model can be better.", decoded
    )


def _heading(run: Path, manifest: Manifest, subject: _Subject) -> tuple[str, str]:
    if subject.adapter is None:
        return f"{subject.name}: nobody trained on this person", _which(run, subject)
    holds = f", who holds clips of {subject.identity}" if subject.identity != subject.name else ""
    private = "A client's face is private; it is here because --client names it, so mind who gets this page. "
    return f"Client {subject.name}{holds}", private + _which(run, subject)


def _which(run: Path, subject: _Subject) -> str:
    after = exported_after(run)
    model = f" The model is the one exported after round {after}." if after else ""
    return f"A {subject.split} clip: nobody trained on it.{model}"


def _some(population: Population) -> str:
    shown = population[:12]
    return ", ".join(shown) + (", …" if len(population) > len(shown) else "")
