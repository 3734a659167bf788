"""What opened lips show: the colours of a shape, laid between the lips and nowhere else."""

import numpy as np
import pytest
import torch

from fedtalk_ray.media.face_template import region_edges
from fedtalk_ray.model.open_mouth import ACROSS, ALONG, SHADED, OpenMouth

SIDE, LOWER = 144, 96
UPPER_LIP, LOWER_LIP = [60, 61, 62, 63, 64], [67, 66, 65]


@pytest.fixture
def closed(face_points: np.ndarray) -> np.ndarray:
    """A face whose inner lips lie on a level line, from 0.4 to 0.6 of the crop and at 0.75."""
    points = face_points.copy()
    points[UPPER_LIP] = np.stack([np.linspace(0.4, 0.6, 5), np.full(5, 0.75)], axis=1)
    points[LOWER_LIP] = points[[61, 62, 63]]
    points[48:60] = [[0.38 + 0.24 * at, 0.72 + 0.06 * (at % 2)] for at in np.linspace(0, 1, 12)]
    return points


def opening(*widths: float) -> np.ndarray:
    """How the mouth's points go when the lower inner lip goes down by so much: [T, 20, 2]."""
    moves = np.zeros((len(widths), 20, 2))
    moves[:, [point - 48 for point in LOWER_LIP], 1] = np.array(widths)[:, None]
    return moves


def painted(colours: torch.Tensor) -> OpenMouth:
    """One that shows these [3, ACROSS, ALONG] in mouths of any shape."""
    mouth = OpenMouth(6)
    mouth.colours[0] = colours
    return mouth


GREY = torch.zeros(3, LOWER, LOWER)
"""A lower face whose colour is 0.5 everywhere."""


def test_it_is_laid_between_the_lips_and_nowhere_else(closed: np.ndarray) -> None:
    mouth = painted(torch.full((3, ACROSS, ALONG), 0.4))
    laid = mouth.laid(GREY, closed, opening(0, 0.1), torch.zeros(2, 6))
    assert not laid[0, 3].any(), "closed lips stay closed"
    left, top, _, _ = region_edges(SIDE, "lower face")
    rows, columns = np.nonzero(laid[1, 3].numpy() > 0.5)
    y, x = (rows + 0.5 + top) / SIDE, (columns + 0.5 + left) / SIDE
    assert 0.4 < x.min() < 0.42 and 0.58 < x.max() < 0.6 and 0.75 < y.min() < 0.76 and 0.84 < y.max() < 0.85
    # The area between the lips: a trapezium from 0.4 to 0.6 below one from 0.45 to 0.55.
    assert float(laid[1, 3].sum()) / SIDE**2 == pytest.approx(0.1 * (0.2 + 0.1) / 2, rel=0.05)
    assert torch.allclose(laid[1, :3, rows, columns], torch.tensor(2 * SHADED * 0.4 * 0.5 - 1)), "of the skin's 0.5"
