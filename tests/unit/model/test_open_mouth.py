"""What opened lips show: the colours of a shape, laid between the lips and nowhere else."""

import numpy as np
import pytest
import torch

from fedtalk_ray.media.face_template import region_edges
from fedtalk_ray.media.lips import aperture_of
from fedtalk_ray.model.bending import Bends, bend
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.open_mouth import (
    ACROSS,
    ALONG,
    MOST_LIGHT,
    SHADED,
    OpenMouth,
    colour_around,
    inside_of,
    lay_over,
)

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


def test_what_lies_between_lips_is_read_place_by_place(closed: np.ndarray) -> None:
    """Of a picture that is as red as a place is far right and as green as it is far down."""
    ticks = (np.arange(SIDE) + 0.5) / SIDE
    right, down = np.meshgrid(ticks, ticks)
    picture = (255 * np.stack([right, down, 0 * down], axis=-1)).round().astype(np.uint8)
    points = closed[None].copy()
    points[0, LOWER_LIP, 1] += 0.1
    (inside,) = inside_of(picture[None], points)
    along, across = ((torch.arange(count) + 0.5) / count for count in (ALONG, ACROSS))
    middle = slice(ALONG // 2 - 1, ALONG // 2 + 1)
    assert inside[0, 0] == pytest.approx(0.4 + 0.2 * along.numpy(), abs=4e-3)
    assert inside[1, :, middle].mean(1) == pytest.approx(0.75 + 0.1 * across.numpy(), abs=7e-3)
    assert not inside[2].any() and inside[1, -1, 0] < inside[1, -1, ALONG // 2], "corners open less"


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


def test_what_is_laid_is_what_is_read_there_again(closed: np.ndarray) -> None:
    colours = torch.rand(3, ACROSS, ALONG, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.7
    colours = torch.nn.functional.avg_pool2d(colours[None], 3, 1, 1, count_include_pad=False)[0]
    moves = opening(0.15)
    laid = painted(colours).laid(GREY, closed, moves, torch.zeros(1, 6))
    lower = ((lay_over(GREY[None], laid) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    left, top, right, bottom = region_edges(SIDE, "lower face")
    whole = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    whole[:, top:bottom, left:right] = lower
    points = closed[None].copy()
    points[:, 48:] += moves
    inner = (..., slice(1, -1), slice(3, -3))
    assert (inside_of(whole, points)[0][inner] - SHADED * colours[inner] / 2).abs().max() < 0.02


def test_an_own_inside_stays_while_lips_are_about_as_far_apart(closed: np.ndarray) -> None:
    """By `OWN_FADES`: of lips a sixth further apart, or less far, half of it; of others by a third or more, nothing."""
    half = closed.copy()
    half[LOWER_LIP, 1] += 0.04
    moves = opening(-0.03, -0.04 / 6, 0, 0.008, 0.02, 0.12)
    mouth = painted(torch.full((3, ACROSS, ALONG), 0.4))
    laid = mouth.laid(GREY, half, moves, torch.zeros(6, 6))
    moved = np.repeat(half[None], 6, axis=0)
    moved[:, 48:] += moves
    ratios = aperture_of(moved) / aperture_of(half[None])
    assert ratios == pytest.approx([1 / 4, 5 / 6, 1, 6 / 5, 3 / 2, 4], abs=1e-6)
    assert laid[:, 3].amax((1, 2)).numpy() == pytest.approx([1, 0.5, 0, 0.5, 1, 1], abs=1e-6)


def test_colours_follow_the_shape_and_the_light_within_bounds(closed: np.ndarray) -> None:
    mouth = painted(torch.full((3, ACROSS, ALONG), 0.6))
    mouth.colours[1, 0] = 0.1
    shapes = torch.zeros(4, 6)
    shapes[:, 0] = torch.tensor([0.0, 2.0, -9.0, 99.0])
    shown = mouth.shown(shapes)
    assert shown[:, 0, 0, 0].tolist() == pytest.approx([0.6, 0.8, 0, MOST_LIGHT]) and (shown[:, 1:] == 0.6).all()
    dim = GREY - 0.5
    laid = mouth.laid(dim, closed, opening(0.1), shapes[:1])
    assert laid[0, 0][laid[0, 3] > 0.5].numpy() == pytest.approx(2 * SHADED * 0.6 * 0.25 - 1)
    bright = mouth.laid(GREY + 0.8, closed, opening(0.1), shapes[3:])
    assert bright[0, 0][bright[0, 3] > 0.5].numpy() == pytest.approx(1), "and nothing is lighter than white"


def test_the_colour_around_a_mouth_is_that_of_its_box(closed: np.ndarray) -> None:
    picture = torch.full((3, LOWER, LOWER), -1.0)
    left, top, _, _ = region_edges(SIDE, "lower face")
    box = np.stack([closed[48:].min(0), closed[48:].max(0)]) * SIDE - (left, top)
    (first, above), (last, below) = box.round().astype(int)
    picture[0, above:below, first:last] = 0.2
    assert colour_around(picture, closed).tolist() == pytest.approx([0.6, 0.05, 0.05]), "and none is wholly dark"
    assert torch.isfinite(colour_around(picture, closed * np.nan)).all()
    beyond = closed + 2
    assert torch.isfinite(colour_around(picture, beyond)).all()


def test_where_anything_is_unknown_nothing_is_laid(closed: np.ndarray) -> None:
    mouth = painted(torch.full((3, ACROSS, ALONG), 0.4))
    moves, shapes = opening(0.1, 0.1, 0.1), torch.zeros(3, 6)
    moves[0, 3] = np.nan
    shapes[1, 2] = np.nan
    laid = mouth.laid(GREY, closed, moves, shapes)
    assert not laid[0, 3].any() and laid[2, 3].any() and torch.isfinite(laid).all()
    assert not mouth.laid(GREY, closed * np.nan, moves, shapes)[:, 3].any()
    assert not mouth.laid(GREY, closed + 2, opening(0.1), shapes[:1]).any(), "a mouth beyond the picture"
    # Frames beside one in which the mouth goes far have what they have alone.
    both = opening(0.1, 0.1)
    both[1, :, 0] += 0.15
    alone = mouth.laid(GREY, closed, both[:1], shapes[:1])
    torch.testing.assert_close(
        lay_over(GREY[None], mouth.laid(GREY, closed, both, shapes[[0, 0]])[:1]), lay_over(GREY[None], alone)
    )


def test_larger_pictures_have_it_at_their_size(closed: np.ndarray) -> None:
    laid = painted(torch.full((3, ACROSS, ALONG), 0.4)).laid(GREY, closed, opening(0.1), torch.zeros(1, 6))
    large = lay_over(torch.zeros(1, 3, 2 * LOWER, 2 * LOWER), laid)
    small = lay_over(GREY[None], laid)
    assert large.shape[-1] == 2 * LOWER
    assert torch.nn.functional.avg_pool2d(large, 2).mean() == pytest.approx(float(small.mean()), rel=0.02)


def test_a_denoiser_lays_it_once_it_is_known(bender: TalkingHeadDenoiser, face_points: np.ndarray, tmp_path) -> None:
    reference, own, shapes = torch.randn(4, 8, 8), torch.zeros(6), torch.randn(3, 6)
    assert bender.laid(reference, face_points, own, shapes) is None, "one of an older version"
    bender.show_open_mouths()
    assert bender.laid(reference, face_points, own, shapes) is None, "and one that is not taught yet"
    bender.open_mouth.colours[0] = 0.7
    laid = bender.laid(reference, face_points, own, shapes)
    soft = bender.latent_bend.soft(reference[None])[0]
    moves = bender.mouth_moves(shapes - own).double().numpy()
    assert torch.equal(laid, bender.open_mouth.laid(soft, face_points, moves, shapes))
    flows = bender.flows(face_points, shapes - own)
    assert torch.equal(bend(soft[None], Bends(flows, laid)), lay_over(bend(soft[None], Bends(flows)), laid))
    bender.save_pretrained(str(tmp_path))
    loaded = TalkingHeadDenoiser.from_pretrained(str(tmp_path))
    assert torch.equal(loaded.laid(reference, face_points, own, shapes), laid)


def test_whoevers_own_mouth_it_is_shows_that_and_saves_none_of_it(closed: np.ndarray) -> None:
    """It is asked for faces that are known; of others nothing is laid."""
    asked = []

    class Own:
        def laid(self, soft: torch.Tensor, points: np.ndarray, moved: np.ndarray, shapes: torch.Tensor) -> torch.Tensor:
            asked.append((points, moved, shapes))
            return torch.full((len(moved), 4, *soft.shape[1:]), 0.25)

    mouth, shapes, moves = painted(torch.ones(3, ACROSS, ALONG)), torch.rand(3, 6), opening(0.1, 0.05, 0.02)
    mouth.own = Own()
    moves[1, 3] = np.nan
    laid = mouth.laid(GREY, closed, moves, shapes)
    assert (laid[[0, 2]] == 0.25).all() and not laid[1].any()
    ((points, moved, told),) = asked
    assert torch.equal(told, shapes[[0, 2]]) and points is closed
    np.testing.assert_allclose(moved[:, 66, 1] - closed[66, 1], [0.1, 0.02], atol=1e-6)
    assert np.array_equal(moved[:, :48], closed[None, :48].repeat(2, 0))
    assert set(mouth.state_dict()) == {"colours"}
    alone = OpenMouth(6)
    assert not alone.known()
    alone.own = Own()
    assert alone.known()
