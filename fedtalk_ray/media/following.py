"""One person's face followed through a video, with the stretches in which it cannot be: turned away, hidden, gone.

`media.faces` makes crops to learn from and takes the largest face of every frame. Here the pictures are shown again
afterwards, so it must be the same person from start to end, and where she is lost nothing may be painted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter1d

from fedtalk_ray.media.faces import (
    DETECT_EVERY,
    SMOOTHING_FRAMES,
    FaceBox,
    NoFaceError,
    boxes_between,
    landmarks_in,
    largest_face,
    sampled_faces,
    similarity_transforms,
)
from fedtalk_ray.media.video import FPS

LONGEST_GAP = 3 * DETECT_EVERY
"""Frames between two sightings up to which the face is taken to have been there: the detector blinks."""

FADE_FRAMES = 4
"""Over so many frames what is painted comes and goes where a stretch begins and ends within a video."""

_SAME_PERSON = 0.1  # least overlap (intersection over union) of a face with itself 0.2 s ago


@dataclass(frozen=True)
class FollowedFace:
    """transforms: from template fractions to picture pixels, float64 [T, 2, 3], NaN where the face was not followed.

    opacity: float64 [T], 1 where it is followed, 0 where not, rising and falling between.
    openness: how far the lips are apart, float64 [T], in eye distances, NaN where not followed.
    """

    transforms: np.ndarray
    opacity: np.ndarray
    openness: np.ndarray

    def lost(self) -> np.ndarray:
        """Numbers of the frames in which the face was not followed."""
        return np.flatnonzero(np.isnan(self.transforms[:, 0, 0]))


def follow_face(frames: Iterable[np.ndarray], face: int | None = None, rate: Fraction | int = FPS) -> FollowedFace:
    """frames: uint8 [H, W, 3], gone through twice, one at a time. rate: frames a second.

    face: which one, counted from 1 from left to right where faces are first seen; None for the largest. Raises
    `NoFaceError` when there is none, or not so many.
    """
    samples, count = sampled_faces(frames)
    stretches = _stretches(_sightings(samples, face))
    boxes = np.full((count, 4), np.nan)
    for stretch in stretches:
        found, seen = zip(*stretch, strict=True)
        boxes[found[0] : found[-1] + 1] = boxes_between(found, seen, range(found[0], found[-1] + 1))
    points = np.full((count, 68, 2), np.nan)
    for number, frame in enumerate(frames):
        if not np.isnan(boxes[number, 0]):
            points[number] = landmarks_in(frame, boxes[number])
    transforms, openness, opacity = np.full((count, 2, 3), np.nan), np.full(count, np.nan), np.zeros(count)
    for stretch in stretches:
        first, last = stretch[0][0], stretch[-1][0] + 1
        steady = gaussian_filter1d(points[first:last], SMOOTHING_FRAMES * float(rate) / FPS, axis=0, mode="nearest")
        transforms[first:last] = similarity_transforms(steady)
        openness[first:last] = _openness(steady)
        shown = np.ones(last - first)
        steps = np.arange(1, min(FADE_FRAMES, len(shown)) + 1) / (FADE_FRAMES + 1)
        if first > 0:
            shown[: len(steps)] = np.minimum(shown[: len(steps)], steps)
        if last < count:
            shown[len(shown) - len(steps) :] = np.minimum(shown[len(shown) - len(steps) :], steps[::-1])
        opacity[first:last] = shown
    return FollowedFace(transforms, opacity, openness)


def face_of(faces: Sequence[FaceBox], face: int | None) -> FaceBox | None:
    """The largest one, or by its number from left to right from 1; None where there are not so many."""
    if not faces:
        return None
    if face is None:
        return largest_face(faces)
    return sorted(faces)[face - 1] if face <= len(faces) else None


def _sightings(samples: list[tuple[int, list[FaceBox]]], face: int | None) -> list[tuple[int, FaceBox]]:
    """Where one person was seen: (frame number, box)."""
    seen: list[tuple[int, FaceBox]] = []
    most = 0
    for number, faces in samples:
        most = max(most, len(faces))
        if seen and number - seen[-1][0] <= LONGEST_GAP:
            near = max(faces, key=lambda box: _overlap(box, seen[-1][1]), default=None)
            if near is not None and _overlap(near, seen[-1][1]) >= _SAME_PERSON:
                seen.append((number, near))
        elif (box := face_of(faces, face)) is not None:
            seen.append((number, box))
    if not most:
        raise NoFaceError(f"no face was found in {len(samples)} sampled frames")
    if not seen:
        raise NoFaceError(f"--face {face}: at most {most} face{'s' * (most > 1)} can be seen at once")
    return seen


def _stretches(seen: list[tuple[int, FaceBox]]) -> list[list[tuple[int, FaceBox]]]:
    """Sightings parted where the gap between two is too long."""
    stretches = [[seen[0]]]
    for before, after in pairwise(seen):
        if after[0] - before[0] > LONGEST_GAP:
            stretches.append([])
        stretches[-1].append(after)
    return stretches


def _overlap(one: FaceBox, other: FaceBox) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)


def _openness(points: np.ndarray) -> np.ndarray:
    """The inner lips' distance over the eyes', float64 [T], of landmarks [T, 68, 2]."""
    eyes = np.linalg.norm(points[:, 36:42].mean(1) - points[:, 42:48].mean(1), axis=-1)
    return np.linalg.norm(points[:, 61:64].mean(1) - points[:, 65:68].mean(1), axis=-1) / eyes
