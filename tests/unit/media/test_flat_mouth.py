"""Mouths laid out flat and laid back: by pictures whose colours say where they are."""

import numpy as np
import pytest
import torch

from fedtalk_ray.media.flat_mouth import SIDE, flat_mouths, lay_flat_mouths, skin_around

PICTURE = 120


def mouth(face_points: np.ndarray, opened: float, wider: float = 0.0, down: float = 0.0) -> np.ndarray:
    """A face's points [68, 2] with straight lips 0.04 thick, so far apart and somewhere else."""
    points = face_points.astype(np.float64).copy()
    for numbers, height in (
        ((49, 50, 51, 52, 53), -0.04),
        ((61, 62, 63), 0.0),
        ((67, 66, 65), opened),
        ((59, 58, 57, 56, 55), opened + 0.04),
    ):
        points[list(numbers), 0] = np.linspace(0.3 - wider, 0.7 + wider, len(numbers) + 2)[1:-1]
        points[list(numbers), 1] = 0.7 + down + height
    points[[48, 54], 0] = 0.3 - wider, 0.7 + wider
    points[[60, 64], 0] = 0.3 - wider + 0.01, 0.7 + wider - 0.01
    points[[48, 54, 60, 64], 1] = 0.7 + down + opened / 2
    return points


def bands(points: np.ndarray) -> torch.Tensor:
    """A picture float [3, P, P] of skin 200, lips 120 and what is between them 30 as bright."""
    y = (np.arange(PICTURE) + 0.5) / PICTURE
    top, upper, lower, bottom = (points[place, 1] for place in (51, 62, 66, 57))
    column = np.select([(y > upper) & (y < lower), (y > top) & (y < bottom)], [30.0, 120.0], 200.0)
    return torch.from_numpy(np.broadcast_to(column[:, None], (3, PICTURE, PICTURE)).copy()).float()


def test_what_lies_between_the_lips_is_in_the_middle_rows_whatever_the_shape(face_points: np.ndarray) -> None:
    shapes = np.stack([mouth(face_points, 0.08), mouth(face_points, 0.15, wider=0.05, down=-0.1)])
    flat = flat_mouths(torch.stack([bands(points) for points in shapes]), shapes)
    assert flat.shape == (2, 3, SIDE, SIDE)
    middle = flat[..., SIDE // 2]
    assert (middle[..., :4] - 200).abs().max() < 1 and (middle[..., -4:] - 200).abs().max() < 1
    assert (middle[..., 9:12] - 120).abs().max() < 12 and (middle[..., 36:39] - 120).abs().max() < 12
    assert (middle[..., 19:29] - 30).abs().max() < 2


def test_columns_go_from_corner_to_corner_with_a_border(face_points: np.ndarray) -> None:
    points = mouth(face_points, 0.1)
    across = torch.linspace(0, 1, PICTURE + 1)[:-1] + 0.5 / PICTURE
    flat = flat_mouths(across.expand(1, 3, PICTURE, PICTURE), points[None])[0, 0, SIDE // 2]
    expected = 0.3 + 0.4 * (np.arange(SIDE) + 0.5 - 4) / 40
    assert flat.numpy() == pytest.approx(expected, abs=1e-3)


def test_a_mouth_laid_back_is_where_the_points_say(face_points: np.ndarray) -> None:
    """Between lips of another shape too, and nowhere but there."""
    flat = flat_mouths(bands(mouth(face_points, 0.08))[None], mouth(face_points, 0.08)[None])
    there = mouth(face_points, 0.16, wider=0.05, down=-0.05)
    colours, share = lay_flat_mouths(flat, there[None], PICTURE)[0].split([3, 1])
    shown = np.argwhere(share[0].numpy() > 0.5) / PICTURE
    assert shown[:, 0].min() > 0.64 and shown[:, 0].max() < 0.82
    assert shown[:, 1].min() > 0.22 and shown[:, 1].max() < 0.78
    down, along = int(0.73 * PICTURE), PICTURE // 2
    assert share[0, down, along] == 1 and colours[:, down, along].tolist() == pytest.approx([30] * 3, abs=2)
    assert not share[0, : int(0.6 * PICTURE)].any() and not share[0, int(0.9 * PICTURE) :].any()


def test_pressed_lips_and_a_mouth_beyond_the_picture_show_nothing(face_points: np.ndarray) -> None:
    flat = torch.full((1, 3, SIDE, SIDE), 30.0)
    pressed = lay_flat_mouths(flat, mouth(face_points, 0.0)[None], PICTURE)
    # Over its seam a pixel of what gives way to the lips is left, half shown at most.
    assert pressed[:, 3].max() <= 0.5 and pressed[:, 3].sum(1).max() < 2
    away = mouth(face_points, 0.1)
    away[:, 1] += 3
    assert not lay_flat_mouths(flat, away[None], PICTURE).any()


def test_skin_is_what_lies_around_the_lips() -> None:
    flat = torch.full((2, 3, SIDE, SIDE), 90.0)
    flat[:, :, 6:-6, 4:-4] = 10
    assert skin_around(flat).shape == (2, 3, 1, 1) and torch.allclose(skin_around(flat), torch.tensor(90.0))
