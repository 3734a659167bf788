"""One person's face followed through a video, with the stretches in which it cannot be.

It may be turned away, hidden, gone, or its mouth cut off by the picture's edge.

`media.faces` makes crops to learn from and takes the largest face of every frame. Here the pictures are shown again
afterwards, so it must be the same person from start to end, and where she is lost nothing may be painted. Faces are
looked for five times a second and on both sides of a cut; what overlaps from one look to the next is a track; and a
track that begins later is hers if a network for recognising faces says so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter1d

from fedtalk_ray.media.faces import (
    MOUTH,
    SMOOTHING_FRAMES,
    FaceBox,
    FaceFinder,
    NoFaceError,
    boxes_between,
    cut_sides,
    is_faint_face,
    landmarks_in,
    largest_face,
    oversampling,
    similarity_transforms,
    warp,
)
from fedtalk_ray.media.framing import ALIGNED, Framing, in_crop
from fedtalk_ray.media.identity_embedding import load_identity_embedder
from fedtalk_ray.media.video import FPS

LOOK_EVERY = 0.2
"""Seconds between two looks: a head moves little in that time."""

LONGEST_GAP = 0.45
"""Seconds between two sightings of a track at most: the detector may miss a face once."""

FADE = 0.16
"""Seconds in which what is painted comes and goes where a stretch begins and ends within a video."""

SPARE = 0.02
"""How much further within the picture, in fractions of the crop, a mouth that was cut off must come: one that hovers at
the edge would blink."""

SAME_PERSON = 0.93
"""Least cosine of dlib's vectors of one person. On GRID two clips of one have 0.956 or more; of two people 99 of 100
pairs have 0.922 or less."""

_OVERLAP = 0.1  # least intersection over union of a face with itself at the look before
_CUT = 25, 0.1  # change of brightness, of 255, in so much of the picture from one frame to the next
_PORTRAIT_SIDE = 128

Track = list[tuple[int, FaceBox]]
"""Where a face was seen: (frame number, box), in order."""


@dataclass(frozen=True)
class FollowedFace:
    """transforms: from fractions of the crop to picture pixels, float64 [T, 2, 3], NaN where the face was not followed.

    opacity: float64 [T], 1 where it is followed, 0 where not, rising and falling between.
    openness: how far the lips are apart, float64 [T], in eye distances, NaN where not followed.
    landmarks: in fractions of the crop, float32 [T, 68, 2], NaN where not followed.
    others: most other faces that are seen at once.
    """

    transforms: np.ndarray
    opacity: np.ndarray
    openness: np.ndarray
    landmarks: np.ndarray
    others: int

    def lost(self) -> np.ndarray:
        """Numbers of the frames in which the face was not followed."""
        return np.flatnonzero(np.isnan(self.transforms[:, 0, 0]))


def follow_face(
    frames: Iterable[np.ndarray],
    face: int | None = None,
    rate: Fraction | int = FPS,
    framing: Framing = ALIGNED,
) -> FollowedFace:
    """frames: uint8 [H, W, 3], gone through twice, one at a time. rate: frames a second.

    face: which one, counted from 1 from left to right where faces are first seen; None for the largest. framing: which
    crops `transforms` are of. Raises `NoFaceError` when there is none, or not so many.
    """
    every = max(1, round(LOOK_EVERY * rate))
    samples, cuts, count = _looks(frames, every)
    tracks = _tracks(samples, cuts, float(LONGEST_GAP * rate))
    first = _first_track(samples, cuts, tracks, face)
    points, cut = _landmarks(frames, count, tracks, first, every)
    if np.isnan(points).all():
        if cut:
            raise NoFaceError(
                f"the mouth is cut off at the picture's edge in {cut} of {count} frames, and no face could be followed "
                "in others; give one that shows all of it"
            )
        raise NoFaceError(f"no face could be followed in {count} frames")
    return _steadied(points, float(rate), max(len(faces) for _, faces in samples) - 1, framing)


def face_of(faces: Sequence[FaceBox], face: int | None) -> FaceBox | None:
    """The largest one, or by its number from left to right from 1; None where there are not so many."""
    if not faces:
        return None
    if face is None:
        return largest_face(faces)
    return sorted(faces)[face - 1] if face <= len(faces) else None


def _looks(frames: Iterable[np.ndarray], every: int) -> tuple[list[tuple[int, list[FaceBox]]], list[int], int]:
    """All faces of every so many frames, of the last, and on both sides of a cut; the cuts; how many frames there are.

    A cut is the number of the first frame after it.
    """
    find = FaceFinder()
    samples: list[tuple[int, list[FaceBox]]] = []
    cuts: list[int] = []
    before: tuple[np.ndarray, np.ndarray] | None = None  # the frame before, whole and shrunk
    count = 0
    for frame in frames:
        small = _shrunk(frame)
        if before is not None and _changed(small, before[1]):
            if samples[-1][0] != count - 1:
                samples.append((count - 1, find(before[0])))
            cuts.append(count)
        if count % every == 0 or (cuts and cuts[-1] == count):
            samples.append((count, find(frame)))
        before, count = (frame, small), count + 1
    if before is not None and samples[-1][0] != count - 1:
        samples.append((count - 1, find(before[0])))
    return samples, cuts, count


def _shrunk(frame: np.ndarray) -> np.ndarray:
    step = max(1, min(frame.shape[:2]) // 32)
    return frame[::step, ::step].mean(-1)


def _changed(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two shrunk pictures differ as on the two sides of a cut."""
    level, share = _CUT
    return bool((np.abs(one - other) > level).mean() > share)


def _shrunk_face(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Brightness float64 [16, 16] of places in a box."""
    left, top, right, bottom = box
    x, y = (np.linspace(*edges, 18)[1:-1].astype(int) for edges in ((left, right), (top, bottom)))
    return frame[np.ix_(y.clip(0, len(frame) - 1), x.clip(0, frame.shape[1] - 1))].mean(-1)


def _tracks(samples: list[tuple[int, list[FaceBox]]], cuts: list[int], longest_gap: float) -> list[Track]:
    """Every face of every shot, each from where it is first seen to where it is last seen."""
    tracks: list[Track] = []
    live: list[Track] = []
    for number, faces in samples:
        live = [track for track in live if number - track[-1][0] <= longest_gap and number not in cuts]
        pairs = [(_overlap(track[-1][1], box), track, box) for track in live for box in faces]
        free = list(faces)
        for overlap, track, box in sorted(pairs, key=lambda pair: -pair[0]):
            if overlap >= _OVERLAP and box in free and track[-1][0] != number:
                track.append((number, box))
                free.remove(box)
        new: list[Track] = [[(number, box)] for box in free]
        tracks += new
        live += new
    return tracks


def _first_track(
    samples: list[tuple[int, list[FaceBox]]], cuts: list[int], tracks: list[Track], face: int | None
) -> Track:
    """The track of the person who is to be followed. What is gone at the next look is no face, if there are others."""
    looks = [number for number, _ in samples]
    next_look = dict(pairwise(looks))
    ends = {number for number in looks if next_look.get(number) in {None, *cuts}}  # of shots
    lasting = [track for track in tracks if len(track) > 1 or track[0][0] in ends] or tracks
    for look in looks:
        seen = {box: track for track in lasting for number, box in track if number == look}
        if (chosen := face_of(list(seen), face)) is not None:
            return seen[chosen]
    if not tracks:
        raise NoFaceError(f"no face was found in {len(samples)} sampled frames")
    most = max(len(faces) for _, faces in samples)
    raise NoFaceError(f"--face {face}: at most {most} face{'s' * (most > 1)} can be seen at once")


def _landmarks(
    frames: Iterable[np.ndarray], count: int, tracks: list[Track], first: Track, every: int
) -> tuple[np.ndarray, int]:
    """The person's landmarks, float64 [T, 68, 2], NaN where she is not followed, and in how many frames that is so
    because an edge of the picture cuts off the mouth."""
    points, cut = np.full((count, 68, 2), np.nan), 0
    is_she = _Recognised() if len(tracks) > 1 else None
    current: Track | None = None
    boxes, doubtful = np.empty((0, 4)), set[int]()
    shown: np.ndarray | None = None  # the face in the frame before
    was_cut = False
    for number, frame in enumerate(frames):
        if current is not None and number > current[-1][0]:
            current = None
        if current is None and number >= first[0][0]:
            for track in (each for each in tracks if each[0][0] == number and (number > first[0][0] or each is first)):
                if is_she is None or is_she(frame, track[0][1]):
                    current = track
                    looked, seen = zip(*track, strict=True)
                    boxes = boxes_between(looked, seen, range(looked[0], looked[-1] + 1))
                    gaps = (range(before + 1, after) for before, after in pairwise(looked) if after - before > every)
                    doubtful = {number for gap in gaps for number in gap}
                    break
        if current is not None:
            box = boxes[number - current[0][0]]
            face = _shrunk_face(frame, box)
            doubted = number in doubtful or shown is None or _changed(face, shown)
            if not doubted or is_faint_face(frame, box):
                found = landmarks_in(frame, box)
                transform = similarity_transforms(found[None])[0]
                was_cut = bool(cut_sides(transform, frame.shape[1], frame.shape[0], MOUTH, SPARE * was_cut))
                cut += was_cut
                if not was_cut:
                    points[number] = found
                shown = face
    return points, cut


class _Recognised:
    """Whether a face is the one that was shown first."""

    def __init__(self) -> None:
        self._embed = load_identity_embedder("dlib").embed
        self._who: np.ndarray | None = None

    def __call__(self, frame: np.ndarray, box: FaceBox) -> bool:
        transforms = similarity_transforms(landmarks_in(frame, box)[None])
        crop = warp(frame, transforms[0], _PORTRAIT_SIDE, oversampling(transforms, _PORTRAIT_SIDE))
        vector = self._embed(crop[None])[0]
        if self._who is None:
            self._who = vector
        return float(vector @ self._who) >= SAME_PERSON


def _steadied(points: np.ndarray, rate: float, others: int, framing: Framing) -> FollowedFace:
    """points: landmarks [T, 68, 2], NaN where the face was not followed."""
    count = len(points)
    there = np.pad(~np.isnan(points[:, 0, 0]), 1).astype(int)
    begins, ends = np.flatnonzero(np.diff(there) == 1), np.flatnonzero(np.diff(there) == -1)
    transforms, openness, opacity = np.full((count, 2, 3), np.nan), np.full(count, np.nan), np.zeros(count)
    steps = max(1, round(FADE * rate))
    for begin, end in zip(begins, ends, strict=True):
        steady = gaussian_filter1d(points[begin:end], SMOOTHING_FRAMES * rate / FPS, axis=0, mode="nearest")
        transforms[begin:end] = framing.transforms(steady)
        openness[begin:end] = _openness(steady)
        from_begin, to_end = np.arange(1, end - begin + 1), np.arange(end - begin, 0, -1)
        rising = from_begin / (steps + 1) if begin > 0 else 1.0
        falling = to_end / (steps + 1) if end < count else 1.0
        opacity[begin:end] = np.minimum(np.minimum(rising, falling), 1)
    return FollowedFace(transforms, opacity, openness, in_crop(points, transforms), others)


def _openness(points: np.ndarray) -> np.ndarray:
    """The inner lips' distance over the eyes', float64 [T], of landmarks [T, 68, 2]."""
    eyes = np.linalg.norm(points[:, 36:42].mean(1) - points[:, 42:48].mean(1), axis=-1)
    return np.linalg.norm(points[:, 61:64].mean(1) - points[:, 65:68].mean(1), axis=-1) / eyes


def _overlap(one: FaceBox, other: FaceBox) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)
