"""The players of a run's report: a held-out clip as it is, spoken by the run's model, and through its autoencoder.

Whom they show: somebody nobody trained on, whose face the run's own samples show too. A client's face is private and is
shown only where the client is named.
"""

import base64
import io
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from fedtalk_ray.errors import RunError, ShardError
from fedtalk_ray.evaluation.evaluate import speak
from fedtalk_ray.generation.generate import enlarge
from fedtalk_ray.generation.samples import spoken_in
from fedtalk_ray.generation.scene import dubbed_pictures
from fedtalk_ray.marking.certificates import Signing
from fedtalk_ray.marking.credentials import COMPOSITE, SYNTHETIC
from fedtalk_ray.marking.marked_video import signing_if_possible, write_marked
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.pictures import smaller
from fedtalk_ray.media.video import VideoError, first_picture
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.model.released import load_released
from fedtalk_ray.progress import ticker
from fedtalk_ray.runs.client_folder import ClientFolder
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.people import People, people_of
from fedtalk_ray.training.backbone import check_fits

PICTURE_SIDE = 480
"""Pixels of the longer side to which whole pictures are brought down."""

BUDGET = 6_000_000
"""Bytes of all videos together, so that with base64's third the page stays below 10 MB."""

NAMES_SHOWN = 12

_OTHERS = "The real clip and what the autoencoder makes of it do not, nor do pictures that are no video."
MARKED = "Generated videos here carry the invisible mark and credentials signed for trials (fedtalk verify). " + _OTHERS
MARKED_ALONE = "Generated videos here carry the invisible mark, and no credentials (fedtalk verify). " + _OTHERS


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


def open_people(config: TrainConfig) -> tuple[People | None, str]:
    """Everybody in the run's shards, or None with the reason in words."""
    try:
        return people_of(config), ""
    except ShardError as error:
        return None, str(error)


def make_videos(run: RunFolder, people: People | None, why: str, client: str | None) -> Videos:
    """New videos by the released model; where the shards or the model cannot be had, those that the run wrote.

    why: the reason for missing shards. Raises `ShardError` for a client that the shards do not have, `RunError` for
    one that the run has nothing of.
    """
    if people is None:
        return kept_samples(run, client, f"The run's shards cannot be read ({why}).")
    if client is not None:
        check_client(run, people, client)
    videos, budget, signing = Videos(), _Budget(), signing_if_possible()
    shown = [*sorted(people.unseen)[:1], *([client] if client is not None else [])]
    if not people.unseen:
        videos.notes.append(
            "The shards hold nobody whom no client trained on, and clients' faces are private: fedtalk report --client "
            "NAME shows one."
        )
    try:
        with ticker(len(shown), "videos") as tick:
            for name in shown:
                own = name if name == client else None
                made = list(players(run, people, name, own, budget, signing))
                videos.rows.append(Row(*heading(run, people, name, own), made))
                tick()
    except (RunError, ShardError) as error:
        return kept_samples(run, client, f"No new videos could be made ({error}).")
    videos.notes.append(MARKED if signing is not None else MARKED_ALONE)
    return videos


def check_client(run: RunFolder, people: People, client: str) -> None:
    """Raises an error for a client that cannot be shown."""
    clients = people.clients
    if client not in people.manifest.identities and (clients is None or client not in clients):
        known = [] if clients is None else clients[:NAMES_SHOWN]
        more = ", …" if clients is not None and len(clients) > NAMES_SHOWN else ""
        raise ShardError(
            f"client {client!r} is not in the shards {people.shards}; the run's clients are {', '.join(known)}{more}"
        )
    run.own_adapter(client)


def kept_samples(run: RunFolder, client: str | None, reason: str) -> Videos:
    """The newest sample that the run wrote of the unseen person, and of the client where one is named."""
    videos, budget = Videos(notes=[f"{reason} What follows are samples that the run itself wrote."]), _Budget()
    if client is not None and client not in run.clients():
        raise RunError(f"client {client!r} took no part in {run.path}; there is no folder of that name in it")
    for name in (None, *([client] if client is not None else [])):
        newest = run.newest_sample(name)
        if newest is None:
            videos.notes.append(f"There is no sample of {'an unseen person' if name is None else name}.")
            continue
        title = f"Client {name}: shown because it was asked for by name" if name else "A person nobody trained on"
        caption = f"A held-out clip with a mouth made from its sound, after round {newest[0]}."
        try:
            player = Player("model" if name else "shared model", caption, *budget.embed(newest[1]))
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
        Image.fromarray(first_picture(file)).save(still, "JPEG", quality=85)
        if len(content) + still.tell() > self._left:
            return None, None
        self._left -= len(content) + still.tell()
        return _data_uri("video/mp4", content), _data_uri("image/jpeg", still.getvalue())


def players(
    run: RunFolder, people: People, name: str, client: str | None, budget: _Budget, signing: Signing | None
) -> Iterator[Player]:
    """client: whose own adapter is shown too, None for the shared model alone. signing: of what was generated."""
    model = load_released(run, device=pick_device())
    check_fits(people.manifest, model, str(run.pipeline))
    piece = next(people.pieces(name, split_shown(people, name)))
    sound = piece.waveform.astype(np.float32) / 32767

    def player(
        title: str, caption: str, frames: Iterable[np.ndarray], kind: str | None, aspect: Fraction = Fraction(1)
    ) -> Player:
        """kind: of what was generated, None for what was not: it is not marked."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "player.mp4"
            if kind is None:
                write_video(file, frames, sound, pixel_aspect=aspect)
            else:
                write_marked(file, frames, sound, kind, signing, pixel_aspect=aspect)
            return Player(title, caption, *budget.embed(file))

    yield player("ground truth", "The real clip.", [enlarge(piece.frames)], None)
    spoken = speak(model, piece.frames[0], piece.waveform, seed=0, frames=len(piece.frames))
    yield player("shared model", "Generated from the clip's first frame and its sound.", [enlarge(spoken)], SYNTHETIC)
    if client is not None:
        after = ClientFolder.written_after(run.own_adapter(client))
        own = load_released(run, client, pick_device())
        spoken = speak(own, piece.frames[0], piece.waveform, seed=0, frames=len(piece.frames))
        caption = f"The shared model with the client's own identity adapter{f', of round {after}' if after else ''}."
        yield player("personalised", caption, [enlarge(spoken)], SYNTHETIC)
    decoded = model.from_latents(piece.frames[0], piece.latents, piece.landmarks)
    yield player(
        "autoencoder alone",
        "Every real frame encoded and decoded, with the detail of the first, bent where the model bends it.",
        [enlarge(decoded)],
        None,
    )
    scene = dubbed_pictures([piece])
    if scene is not None:
        put, aspect = spoken_in(scene, model, piece)
        caption = "The clip's own pictures, with a mouth that the shared model made from its sound."
        try:
            small = (smaller(block, PICTURE_SIDE) for block in put)
            yield player("in its picture", caption, small, COMPOSITE, aspect)
        except VideoError:
            return


def split_shown(people: People, name: str) -> str:
    """Test clips were looked at by nobody, val clips by the client when it scored itself."""
    return "test" if any(people.manifest.pieces(who, "test") for who in people.identities(name)) else "val"


def heading(run: RunFolder, people: People, name: str, client: str | None) -> tuple[str, str]:
    """A row's title and what is to be known of it."""
    after = run.released_round()
    which = f"A {split_shown(people, name)} clip: nobody trained on it."
    which += f" The model is the one exported after round {after}." if after else ""
    if client is None:
        return f"{name}: nobody trained on this person", which
    held = ", ".join(people.identities(name))
    holds = f", who holds clips of {held}" if held != name else ""
    private = (
        "A client's face is private, and so is what its pictures show beside it; they are here because --client names "
        "it, so mind who gets this page. "
    )
    return f"Client {name}{holds}", private + which


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
