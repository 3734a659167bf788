"""What lips do, in a few numbers that mean the same on every face: what the first part of a motion code is taught.

Pictures of an opening mouth differ from face to face, so a regression on pictures has to learn every face anew. The
landmarks of lips do not: sound is taught these first (`speech_motion`), and the U-Net learns from true ones what they
look like on the face of the reference.
"""

import numpy as np

from fedtalk_ray.media.lips import aperture_of, face_landmarks
from fedtalk_ray.progress import progress
from fedtalk_ray.shards.format import Piece

MOUTH_POINTS = slice(48, 68)
MIRRORED = [6, 5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 16, 15, 14, 13, 12, 19, 18, 17]
"""Which of the mouth's points lies where each one does in a mirror: 12 around the outer lip, 8 around the inner."""


def lip_shapes(pieces: list[Piece], count: int) -> list[np.ndarray]:
    """Float32 [T, count] for each piece, in standard deviations over all pieces; needs the pieces' frames.

    The first number is the aperture, as it is. The others are the mouth landmarks' largest variations around their
    clip's mean (principal components), where a mouth habitually sits taken out, and made even left and right, so that
    mirrored pictures have the same.
    """
    points = [face_landmarks(piece.frames).astype(np.float64) for piece in progress(pieces, len(pieces), "lips")]
    apertures = [aperture_of(each)[:, None] for each in points]
    moved = [_even(each[:, MOUTH_POINTS] - each[:, MOUTH_POINTS].mean(0)).reshape(len(each), -1) for each in points]
    axes = np.linalg.svd(np.concatenate(moved), full_matrices=False)[2][: count - 1]
    raw = [np.concatenate([gap, each @ axes.T], axis=1) for gap, each in zip(apertures, moved, strict=True)]
    together = np.concatenate(raw)
    mean, spread = together.mean(0), together.std(0).clip(min=1e-6)
    return [((each - mean) / spread).astype(np.float32) for each in raw]


def _even(moved: np.ndarray) -> np.ndarray:
    """Displacements [T, 20, 2] averaged with their mirror image's."""
    return (moved + moved[:, MIRRORED] * (-1, 1)) / 2
