"""What a window is seen as: its points lie where its picture shows them."""

import numpy as np
import torch

from fedtalk_ray.media.lips import MIRRORED_FACE
from fedtalk_ray.media.speech import LOG_MEL
from fedtalk_ray.shards.windows import PictureBatch
from fedtalk_ray.training.augment import View, vary_seen_and_heard, vary_windows

SIDE = 144


def dots(places: np.ndarray) -> np.ndarray:
    """A face uint8 [S, S, 3] with a soft bright dot at each of these places, in fractions."""
    y, x = np.mgrid[:SIDE, :SIDE]
    light = np.full((SIDE, SIDE), 40.0)
    for px, py in places * SIDE - 0.5:
        light += 150 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 2.0**2))
    return np.repeat(light.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def test_points_go_where_the_picture_goes(face_points: np.ndarray) -> None:
    """In twelve views dots on brow, eye, corner of the mouth and lower lip are where their points say."""
    rng = np.random.default_rng(0)
    seen = [19, 36, 48, 57]
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    mirrored = 0
    for _ in range(12):
        view = View.drawn(rng)
        mirrored += view.mirrored
        found = view.of_points(face_points.astype(np.float32))
        for point in seen:
            picture = view.of_pictures(dots(face_points[[point]])[None])[0].mean(0).numpy()
            # The point of this number is the other one's in a mirror.
            at = found[MIRRORED_FACE.index(point) if view.mirrored else point]
            light = (picture - np.median(picture)).clip(0)
            near = light * (np.hypot(x - at[0], y - at[1]) < 8 / SIDE)
            assert near.sum() > 0.9 * light.sum()
            middle = np.array([(x * near).sum(), (y * near).sum()]) / near.sum()
            np.testing.assert_allclose(middle, at, atol=0.6 / SIDE)
    assert 2 < mirrored < 10


def test_no_points_stay_none_and_a_mirror_twice_is_none(face_points: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    assert View.drawn(rng).of_points(np.zeros((0, 2), np.float32)).shape == (0, 2)
    assert [MIRRORED_FACE[point] for point in MIRRORED_FACE] == list(range(68))
    still = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    mirror = View(True, still, np.ones(3, np.float32), np.zeros(3, np.float32))
    twice = mirror.of_points(mirror.of_points(face_points.astype(np.float32)))
    np.testing.assert_allclose(twice, face_points, atol=1e-6)
    faces = dots(face_points)[None]
    expected = torch.from_numpy(faces / 127.5 - 1).permute(0, 3, 1, 2).flip(3).float()
    torch.testing.assert_close(mirror.of_pictures(faces), expected, atol=1e-4, rtol=1e-4)


def test_the_references_points_are_varied_with_its_picture(make_pipeline, face_points: np.ndarray) -> None:
    """As in training: of each window by the view in which its own reference is seen."""
    faces = torch.from_numpy(np.repeat(dots(face_points[[57]])[None], 6, axis=0))
    points = torch.from_numpy(face_points).float().expand(6, -1, -1)
    sounds = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 4, 44, 40)).astype(np.float32))
    batch = PictureBatch(faces[:, None].expand(-1, 4, -1, -1, -1), sounds, faces, reference_points=points)
    pixels, _, found = vary_seen_and_heard(batch, np.random.default_rng(5), LOG_MEL)
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    for window, face in zip(pixels, found, strict=True):
        picture = window[0].mean(0).numpy()
        light = (picture - np.median(picture)).clip(0)
        middle = np.array([(x * light).sum(), (y * light).sum()]) / light.sum()
        np.testing.assert_allclose(middle, face[57], atol=1.5 / SIDE)
    assert len({tuple(each[57].tolist()) for each in found}) == 6
    windows = vary_windows(make_pipeline(), batch, np.random.default_rng(5))
    torch.testing.assert_close(windows.reference_points, found)
