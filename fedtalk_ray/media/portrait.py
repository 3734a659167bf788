"""The one face of a picture that somebody gives: found at any size, cropped, or refused with the reason."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedtalk_ray.media import dlib_models
from fedtalk_ray.media.faces import (
    FaceBox,
    NoFaceError,
    cut_sides,
    detect_faces,
    landmarks_in,
    oversampling,
    similarity_transforms,
    warp,
)
from fedtalk_ray.media.following import face_of
from fedtalk_ray.media.framing import ALIGNED, Framing

SMALLEST_SIDE = 32
"""Pixels on the shorter side of a picture below which no face is looked for."""

_DETECTOR_SIDES = (400, 1200)  # longer sides at which large faces are found fast; then the picture as it is
_ENLARGED_PIXELS = 1_000_000  # dlib sees no face under 80 pixels; up to so many pixels a picture is also doubled
_SMALL, _OUTSIDE = 0.75, 0.10


@dataclass(frozen=True)
class FacePlace:
    """transform: from template fractions to picture pixels, float64 [2, 3]. landmarks: float64 [68, 2] in pixels.
    notes: what the giver should know."""

    transform: np.ndarray
    landmarks: np.ndarray
    notes: tuple[str, ...]


class Portrait(NamedTuple):
    """crop: uint8 [size, size, 3]. notes: what the giver should know, a short sentence each."""

    crop: np.ndarray
    notes: tuple[str, ...]


def crop_portrait(picture: np.ndarray, size: int, face: int | None = None, framing: Framing = ALIGNED) -> Portrait:
    """The face that `locate_face` finds. A note says when it is smaller than the crop, and when the crop reaches beyond
    the picture (its edge goes on there)."""
    place = locate_face(picture, face)
    transform, notes = framing.transforms(place.landmarks[None])[0], list(place.notes)
    side = float(np.hypot(transform[0, 0], transform[1, 0]))
    if side < _SMALL * size:
        notes.append(f"the face is only about {side:.0f} pixels wide and comes out soft; {size} or more are better")
    height, width = picture.shape[:2]
    if _fraction_outside(transform, width, height) > _OUTSIDE:
        notes.append("the face is close to the picture's edge, which is drawn on beyond it; leave more room around it")
    return Portrait(warp(picture, transform, size, oversampling(transform[None], size)), tuple(notes))


def locate_face(picture: np.ndarray, face: int | None = None) -> FacePlace:
    """Where a face of a picture uint8 [H, W, 3] lies: by its number from left to right, from 1, or the largest.

    A note says when there are others and none was chosen. Raises `NoFaceError` when there is none, or not so many, when
    it lies on its side, and when an edge of the picture cuts eyes, nose or mouth off.
    """
    height, width = picture.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise NoFaceError(f"{width} x {height} pixels are too few to find a face in; give at least 100 x 100")
    faces = _find_faces(picture, face or 1)
    if not faces:
        _refuse_turned(picture)
        raise NoFaceError(
            f"no face was found in {width} x {height} pixels; give a picture of one face that looks into the camera, "
            "upright, lit, and at least 80 pixels wide"
        )
    chosen = face_of(faces, face)
    if chosen is None:
        raise NoFaceError(f"--face {face}: {len(faces)} face{'s' * (len(faces) > 1)} found; they count from 1")
    landmarks = landmarks_in(picture, chosen)
    transform = similarity_transforms(landmarks[None])[0]
    if sides := cut_sides(transform, width, height):
        raise NoFaceError(f"the face is cut off at the picture's {sides} edge; give one that shows all of it")
    if len(faces) == 1 or face is not None:
        return FacePlace(transform, landmarks, ())
    left, top, right, bottom = chosen
    return FacePlace(
        transform,
        landmarks,
        (
            f"{len(faces)} faces found; the largest speaks (x {left} to {right}, y {top} to {bottom}), --face N takes "
            "another, counted from the left",
        ),
    )


def _find_faces(picture: np.ndarray, wanted: int = 1, quick: bool = False) -> list[FaceBox]:
    """All faces at the coarsest scale at which there are so many, or else at the finest; not `quick`, the picture as it
    is and doubled too."""
    longer = max(picture.shape[:2])
    shrinks = sorted({max(1, round(longer / side)) for side in _DETECTOR_SIDES} | (set() if quick else {1}))
    found: list[FaceBox] = []
    for shrink in reversed(shrinks):
        finer, _ = detect_faces(picture, [shrink])
        found = finer if len(finer) > len(found) else found
        if len(found) >= wanted:
            return found
    if not quick and picture.shape[0] * picture.shape[1] <= _ENLARGED_PIXELS:
        doubled = [
            (box.left(), box.top(), box.right(), box.bottom())
            for box in dlib_models.face_detector()(np.ascontiguousarray(picture), 1)
        ]
        found = doubled if len(doubled) > len(found) else found
    return found


def _refuse_turned(picture: np.ndarray) -> None:
    """Raises `NoFaceError` when turning the picture shows a face: better than not finding one in a photo of one."""
    for quarters, mend in ((1, "by 90 degrees to the left"), (3, "by 90 degrees to the right"), (2, "upside down")):
        if _find_faces(np.rot90(picture, quarters), quick=True):
            raise NoFaceError(f"the picture shows a face only when it is turned {mend}; turn it so and save it")


def _fraction_outside(transform: np.ndarray, width: int, height: int) -> float:
    """How much of the crop lies outside the picture; transform [2, 3] maps crop fractions to picture pixels."""
    ticks = (np.arange(32) + 0.5) / 32
    x, y = np.moveaxis(np.stack([*np.meshgrid(ticks, ticks), np.ones((32, 32))], axis=-1) @ transform.T, -1, 0)
    return float(((x < 0) | (y < 0) | (x > width) | (y > height)).mean())
