"""A face whose lips have another shape: the picture bent by the points that move, no network.

Between the points a thin-plate spline says how far all else goes along, so that lips, chin and cheeks keep the person's
own skin. What no point shows does not appear: an opened mouth is lips pulled apart, without teeth.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import RBFInterpolator

from fedtalk_ray.media.lips import MOUTH_POINTS

MOVED_POINTS = np.r_[3:14, 31:36, MOUTH_POINTS]
"""Which of dlib's 68 points bend the picture: the jaw without its upper ends, the nose's lower edge, the mouth."""

STILL = (
    *((0, 0.3), (0.25, 0.35), (0.5, 0.35), (0.75, 0.35), (1, 0.3)),
    *((0, 0.6), (1, 0.6), (0.02, 0.85), (0.98, 0.85)),
    *((0, 1.05), (0.5, 1.15), (1, 1.05)),
)
"""Places that never move, in fractions of an aligned crop: along the eyes, at its sides, and below it."""

SMOOTHING = 5e-4
"""How freely the spline passes points by. On eight GRID speakers who teach nobody, with true lips told, mouths were
31.9 dB near; with ten times as much 31.8, and lips opened by 0.61 of the truth's way for 0.79."""

JAW_FOLLOWS = (0.30, 0.44, 0.60, 0.80, 1.01, 1.09, 1.01, 0.80, 0.60, 0.44, 0.30)
"""How far the jaw's points 3 to 13 go down with the lower lip, of the way of its outer edge. Least squares over the
training clips of seven GRID speakers; of how the chin's middle moves it explains 0.77."""

_JAW, _LOWER_LIP = slice(3, 14), slice(55, 60)

_CELLS = 48  # a side, of the grid on which a whole crop's spline is worked out


def warp_lips(face: np.ndarray, landmarks: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """The face with its points moved, once for each of T `moves`: uint8 [T, S, S, 3].

    face: uint8 [S, S, 3], an aligned crop. landmarks: its points [68, 2], (x, y) in fractions of its side. moves: how
    far each goes [T, 68, 2], in the same unit; only those of `MOVED_POINTS` count. Raises `ValueError` for others.
    """
    if face.dtype != np.uint8 or face.ndim != 3 or face.shape[0] != face.shape[1] or face.shape[2] != 3:
        raise ValueError(f"lips are warped in uint8 [S, S, 3], a square crop; got {face.dtype} {list(face.shape)}")
    if landmarks.shape != (68, 2) or moves.ndim != 3 or moves.shape[1:] != (68, 2):
        raise ValueError(
            f"points must be [68, 2] and their moves [T, 68, 2]; got {list(landmarks.shape)}, {list(moves.shape)}"
        )
    side = face.shape[0]
    back = lip_flow(landmarks, moves, centres(_CELLS)).astype(np.float32)
    finer = F.interpolate(torch.from_numpy(back).permute(0, 3, 1, 2), (side, side), mode="bicubic", align_corners=False)
    taken = torch.from_numpy(centres(side).astype(np.float32)) + finer.permute(0, 2, 3, 1)
    picture = torch.from_numpy(face).permute(2, 0, 1)[None].float().expand(len(moves), -1, -1, -1)
    made = F.grid_sample(picture, taken * 2 - 1, mode="bicubic", padding_mode="border", align_corners=False)
    return made.clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()


def lip_flow(landmarks: np.ndarray, moves: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How far from each place of the bent face it lies in the face as it was: float64 [T, ..., 2].

    landmarks [68, 2], moves [T, 68, 2] and places [..., 2] in fractions of the crop's side.
    """
    points = np.concatenate([landmarks[MOVED_POINTS], STILL]).astype(np.float64)
    back = np.empty((len(moves), *places.shape))
    for found, move in zip(back, moves, strict=True):
        moved = points.copy()
        moved[: len(MOVED_POINTS)] += move[MOVED_POINTS]
        # From where a point arrives to where it came from: each place of the result asks where it is taken from.
        spline = RBFInterpolator(moved, points - moved, kernel="thin_plate_spline", smoothing=SMOOTHING)
        found[:] = spline(places.reshape(-1, 2)).reshape(places.shape)
    return back


def moves_of_face(mouth: np.ndarray) -> np.ndarray:
    """How all 68 points move, [T, 68, 2], when those of the mouth do so, [T, 20, 2]: the jaw goes along."""
    moves = np.zeros((len(mouth), 68, 2))
    moves[:, MOUTH_POINTS] = mouth
    moves[:, _JAW, 1] = moves[:, _LOWER_LIP, 1].mean(1, keepdims=True) * JAW_FOLLOWS
    return moves


def centres(count: int) -> np.ndarray:
    """(x, y) of the centres of count x count cells, in fractions: [count, count, 2]."""
    ticks = (np.arange(count) + 0.5) / count
    return np.stack(np.meshgrid(ticks, ticks), axis=-1)
