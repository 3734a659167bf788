"""What a sound is put into: a photo, or a video that is shown as it is but for the mouth; each with one face followed.

A video goes back and forth where the sound is longer. Its frames are decoded one at a time, backwards in short pieces,
so that memory grows neither with its length nor with its pictures.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, repeat
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from fedtalk_ray.generation.still_life import StillLife
from fedtalk_ray.media.excerpt import KEPT_BYTES, Footage, excerpt_of
from fedtalk_ray.media.faces import oversampling, places_of_crops, warp
from fedtalk_ray.media.following import FollowedFace, follow_face
from fedtalk_ray.media.framing import ALIGNED, Framing
from fedtalk_ray.media.lips import aperture_of, lips_of
from fedtalk_ray.media.portrait import locate_face
from fedtalk_ray.media.video import FPS, VideoError, VideoFormat, format_of
from fedtalk_ray.model.pipeline import frame_count
from fedtalk_ray.progress import progress
from fedtalk_ray.shards.format import Piece

_LOG = logging.getLogger(__name__)

PIECE_BYTES = 64 << 20
"""Decoded frames that are held at once where a video is gone through backwards."""

SAME_PICTURE = 6.0
"""Mean difference, of 255, of a crop from what is cut out again in its place: what decoders differ by is far below."""

LARGEST_PHOTO = 1920
"""Pixels on the longer side of the video that a photo becomes: more hardly any player shows, and each frame costs."""

MANY_FRAMES = 500
"""From here on following a face shows a progress bar."""


class Stopped(Exception):
    """Nobody wants the video any more."""


@dataclass(frozen=True)
class Shown:
    """One frame: picture uint8 [H, W, 3]; transform from the crop's fractions to its pixels [2, 3]; opacity of what is
    painted, 0 where the face is not followed (and transform is then NaN)."""

    picture: np.ndarray
    transform: np.ndarray
    opacity: float

    def crop(self, size: int) -> np.ndarray:
        """The face as it is framed: uint8 [size, size, 3]."""
        return warp(self.picture, self.transform, size, oversampling(self.transform[None], size))


class Scene(Protocol):
    """rate: frames a second. relit: whether the light on the face may change. reference: the picture whose face speaks,
    and where it lies there. reference_lips: what the scene knows of its lips (`media.lips.lips_of`), None where no more
    than the picture shows. notes: what the giver should know."""

    rate: Fraction
    pixel_aspect: Fraction
    relit: bool
    reference: Shown
    reference_lips: np.ndarray | None
    notes: tuple[str, ...]

    def frames(self, count: int) -> Iterator[Shown]:
        """The first `count` frames to paint on, one at a time."""
        ...


class Still:
    """A photo uint8 [H, W, 3]. moves: it blinks and sways (`still_life`). Raises `NoFaceError`."""

    rate, pixel_aspect, relit = Fraction(FPS), Fraction(1), False
    reference_lips: np.ndarray | None = None

    def __init__(
        self, picture: np.ndarray, face: int | None = None, moves: bool = True, framing: Framing = ALIGNED
    ) -> None:
        height, width = picture.shape[:2]
        picture = even(_shrunk(picture))
        place = locate_face(picture, face)
        transform = framing.transforms(place.landmarks[None])[0]
        self.reference, self.notes = Shown(picture, transform, 1.0), place.notes
        if len(picture) < height - 1:
            self.notes += (f"its {width} x {height} pixels become {picture.shape[1]} x {len(picture)}",)
        self._life = StillLife(place.landmarks, place.transform, picture.shape[:2], self.rate) if moves else None

    def frames(self, count: int) -> Iterator[Shown]:
        if self._life is None:
            yield from repeat(self.reference, count)
            return
        for number, closed in enumerate(self._life.closed(count)):
            picture = self._life.blinked(self.reference.picture, float(closed))
            yield Shown(*self._life.swayed(picture, number, self.reference.transform), 1.0)


class Pictures(Protocol):
    """Frames uint8 [H, W, 3], to be gone through again: all, or those from number first to before number end."""

    def __iter__(self) -> Iterator[np.ndarray]: ...

    def part(self, first: int, end: int) -> Iterator[np.ndarray]: ...


class Dubbed:
    """Pictures in their own size and rate, in each of which one face is followed."""

    relit = True

    def __init__(
        self,
        pictures: Pictures,
        face: FollowedFace,
        rate: Fraction = Fraction(FPS),
        pixel_aspect: Fraction = Fraction(1),
        notes: tuple[str, ...] = (),
    ) -> None:
        self._pictures, self._face = pictures, face
        self.rate, self.pixel_aspect, self.notes = rate, pixel_aspect, notes
        # Where the mouth is closed least of it is hidden. While a stretch fades in the face may be half turned.
        best = int(np.nanargmin(face.openness + 10 * (face.opacity < 1)))
        picture = next(islice(pictures, best, None), None)
        if picture is None:
            raise VideoError(f"has no frame {best} any more")
        self.reference = Shown(even(picture), face.transforms[best], 1.0)
        followed = ~np.isnan(face.openness)
        self.reference_lips: np.ndarray | None = lips_of(face.landmarks[followed], int(followed[:best].sum()), rate)

    def frames(self, count: int) -> Iterator[Shown]:
        total = len(self._face.opacity)
        made = 0
        while made < count:
            forth = (made - 1) // max(1, total - 1) % 2 == 0  # the frame at each turn is shown once
            numbers = range(total) if made == 0 else range(1, total) if forth else range(total - 2, -1, -1)
            numbers = numbers if total > 1 else range(1)
            pictures = iter(self._pictures) if made == 0 else self._in_order(numbers)
            for number, picture in zip(numbers, pictures, strict=False):
                if made == count:
                    return
                yield Shown(even(picture), self._face.transforms[number], float(self._face.opacity[number]))
                made += 1

    def _in_order(self, numbers: range) -> Iterator[np.ndarray]:
        """Frames by their numbers, up or down."""
        size = self.reference.picture.nbytes
        if size * len(self._face.opacity) <= KEPT_BYTES:
            kept = list(islice(self._pictures, len(self._face.opacity)))
            yield from (kept[number] for number in numbers)
            return
        together = max(1, PIECE_BYTES // size)
        for at in range(0, len(numbers), together):
            piece = numbers[at : at + together]
            first, last = min(piece), max(piece)
            pictures = list(self._pictures.part(first, last + 1))
            yield from pictures if piece.step > 0 else reversed(pictures)


def dubbed_file(
    path: str | Path,
    samples: int | None = None,
    face: int | None = None,
    framing: Framing = ALIGNED,
    stopped: Callable[[], bool] = lambda: False,
) -> Dubbed:
    """A video file; of a longer one what so many samples of sound need, None for all.

    face, framing: as `follow_face` takes them. stopped: asked at every frame; where it says so `Stopped` is raised.
    Raises `VideoError` and `NoFaceError`.
    """
    shown = format_of(path)
    if shown.hdr:
        raise VideoError(f"{path}: is HDR ({shown.hdr}); convert it to 8-bit SDR (BT.709) first")
    end = math.inf if samples is None else float(frame_count(samples, shown.rate) / shown.rate)
    footage = Footage(path, end=end, rate=shown.rate)
    watched = _Watched(footage, round(min(end, shown.seconds) * shown.rate), stopped)
    followed = follow_face(watched, face, shown.rate, framing)
    return Dubbed(footage, followed, shown.rate, shown.pixel_aspect, tuple(_notes(followed, shown, face)))


def dubbed_pictures(pieces: Sequence[Piece]) -> Dubbed | None:
    """Neighbouring pieces of a clip in its own pictures; None for a drawn clip, and where they are gone or HDR."""
    excerpt = excerpt_of(pieces[0].footage)
    places = np.concatenate([piece.places for piece in pieces])
    landmarks = np.concatenate([piece.landmarks for piece in pieces])
    openness = aperture_of(landmarks).astype(np.float64)
    if excerpt is None or not len(places) == len(openness) > 0:
        return None
    face = FollowedFace(places.astype(np.float64), np.ones(len(places)), openness, landmarks, 0)
    try:
        shown = format_of(excerpt.path)
        if shown.hdr:
            return None
        scene = Dubbed(_FromFrame(excerpt.footage(), pieces[0].begin), face, pixel_aspect=shown.pixel_aspect)
    except VideoError:
        _LOG.warning("a clip is shown by its crops: its file can no longer be read")
        return None
    crops = np.concatenate([piece.frames for piece in pieces])
    there = scene.reference.crop(crops.shape[1])
    if np.abs(there.astype(int) - crops[int(openness.argmin())]).mean() > SAME_PICTURE:
        _LOG.warning("a clip is shown by its crops: its file is no longer the one that was prepared")
        return None
    return scene


def dubbed_crops(piece: Piece) -> Dubbed:
    """A piece that has landmarks, in its crops."""
    openness, side = aperture_of(piece.landmarks).astype(np.float64), piece.frames.shape[1]
    count = len(openness)
    face = FollowedFace(places_of_crops(side, count), np.ones(count), openness, piece.landmarks, 0)
    return Dubbed(_Crops(piece.frames), face)


class _Crops:
    """Frames that are in memory."""

    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._frames)

    def part(self, first: int, end: int) -> Iterator[np.ndarray]:
        return iter(self._frames[first:end])


class _FromFrame:
    """Footage from a frame on."""

    def __init__(self, footage: Footage, begin: int) -> None:
        self._footage, self._begin = footage, begin

    def __iter__(self) -> Iterator[np.ndarray]:
        return islice(self._footage, self._begin, None)

    def part(self, first: int, end: int) -> Iterator[np.ndarray]:
        return self._footage.part(self._begin + first, self._begin + end)


def even(picture: np.ndarray) -> np.ndarray:
    """Without the last row or column where their number is odd: H.264 stores colours for two at a time."""
    height, width = (length - length % 2 for length in picture.shape[:2])
    return picture[:height, :width]


class _Watched:
    """Frames that are gone through twice, with a progress bar each time where there are many, unless stopped."""

    def __init__(self, frames: Iterable[np.ndarray], count: int, stopped: Callable[[], bool]) -> None:
        self._frames, self._count, self._stopped = frames, count, stopped
        self._labels = iter(("frames searched", "frames followed"))

    def __iter__(self) -> Iterator[np.ndarray]:
        label = next(self._labels)
        for frame in progress(self._frames, self._count, label) if self._count > MANY_FRAMES else self._frames:
            if self._stopped():
                raise Stopped
            yield frame


def _shrunk(picture: np.ndarray) -> np.ndarray:
    """A photo of at most `LARGEST_PHOTO` pixels on its longer side."""
    if max(picture.shape[:2]) <= LARGEST_PHOTO:
        return picture
    small = Image.fromarray(picture)
    small.thumbnail((LARGEST_PHOTO, LARGEST_PHOTO))
    return np.array(small)


def _notes(face: FollowedFace, shown: VideoFormat, chosen: int | None) -> Iterator[str]:
    lost = face.lost()
    if face.others and chosen is None:
        yield f"{face.others + 1} faces found; the largest speaks, --face N takes another, counted from the left"
    if len(lost):
        yield (
            f"no face could be followed in {len(lost)} of {len(face.opacity)} frames, first at "
            f"{float(lost[0] / shown.rate):.1f} s; they stay as they are"
        )
    if shown.bits > 8:
        yield f"its {shown.bits} bits a colour become 8"
    if shown.own_rate > shown.rate:
        yield f"its {float(shown.own_rate):.0f} frames a second become {shown.rate}"
