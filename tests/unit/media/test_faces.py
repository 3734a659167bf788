"""Alignment: transforms that are exact where the truth is known, pixels that go where they should, no face, no crop."""

import numpy as np
import pytest

from fedtalk_ray.corpora.listing import synthetic
from fedtalk_ray.media import faces
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE
from fedtalk_ray.media.faces import (
    NoFaceError,
    crop_faces,
    face_transforms,
    find_landmarks,
    similarity_transforms,
    smooth_landmarks,
)


def template_landmarks(rng: np.random.Generator) -> np.ndarray:
    """68 points in fractions of the crop: anchors where the template has them, all others anywhere."""
    points = rng.uniform(0, 1, (68, 2))
    for eye, place in ((slice(36, 42), LEFT_EYE), (slice(42, 48), RIGHT_EYE)):
        spread = rng.normal(0, 0.02, (6, 2))
        points[eye] = place + spread - spread.mean(axis=0)
    distance = RIGHT_EYE[0] - LEFT_EYE[0]
    middle = (LEFT_EYE[0] + RIGHT_EYE[0]) / 2
    points[27:31] = [(middle, LEFT_EYE[1] + distance * below) for below in faces._BRIDGE_BELOW_EYES]
    return points


def similarity(scale: float, angle: float, x: float, y: float) -> np.ndarray:
    """[2, 3]: rotate by `angle`, scale, shift."""
    return np.array([
        [scale * np.cos(angle), -scale * np.sin(angle), x],
        [scale * np.sin(angle), scale * np.cos(angle), y],
    ])  # fmt: skip


def apply(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ transform[:, :2].T + transform[:, 2]


def test_noisy_landmarks_give_the_weighted_least_squares_similarity() -> None:
    """The same problem as a linear system in (a, b, x, y), solved by numpy; eyes weigh four times as much."""
    rng = np.random.default_rng(0)
    points = apply(similarity(120, 0.2, 40, 60), template_landmarks(rng)) + rng.normal(0, 3, (68, 2))
    template = template_landmarks(rng)
    anchors = [points[36:42].mean(0), points[42:48].mean(0), *points[27:31]]
    known = [np.array(LEFT_EYE), np.array(RIGHT_EYE), *template[27:31]]
    rows, values = [], []
    for (u, v), (px, py), weight in zip(known, anchors, [2, 2, 1, 1, 1, 1], strict=True):
        rows += [[weight * u, -weight * v, weight, 0], [weight * v, weight * u, 0, weight]]
        values += [weight * px, weight * py]
    a, b, x, y = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    np.testing.assert_allclose(similarity_transforms(points[None])[0], [[a, -b, x], [b, a, y]], rtol=1e-9)


def test_smoothing_takes_noise_away_and_leaves_places_and_steady_motion() -> None:
    rng = np.random.default_rng(0)
    still = np.tile(rng.uniform(0, 300, (1, 68, 2)), (60, 1, 1))
    np.testing.assert_allclose(smooth_landmarks(still), still)
    moving = still + np.arange(60)[:, None, None]
    np.testing.assert_allclose(smooth_landmarks(moving)[15:-15], moving[15:-15], atol=1e-3)
    noise = rng.normal(0, 1, still.shape)
    # White noise through a Gaussian of deviation s keeps 1 / (2 s sqrt(pi)) of its variance.
    kept = (smooth_landmarks(still + noise) - still)[10:-10].var()
    assert kept == pytest.approx(1 / (2 * faces.SMOOTHING_FRAMES * np.pi**0.5), rel=0.15)


def test_half_size_is_the_mean_of_four_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 24, 24, 3), dtype=np.uint8)
    half = np.stack(list(crop_faces(frames, similarity(24, 0, 0, 0)[None], 12)))
    expected = frames.reshape(1, 12, 2, 12, 2, 3).astype(float).mean((2, 4))
    assert np.abs(half - expected).max() <= 0.51


def test_a_part_of_the_picture_and_beyond_its_edge() -> None:
    frames = np.zeros((1, 20, 30, 3), np.uint8)
    frames[0, :, :10] = (200, 100, 50)
    inside = np.stack(list(crop_faces(frames, similarity(10, 0, 0, 5)[None], 10)))
    assert (inside == (200, 100, 50)).all()
    outside = np.stack(list(crop_faces(frames, similarity(10, 0, -10, 5)[None], 10)))
    assert (outside == (200, 100, 50)).all(), "the edge goes on"


@pytest.mark.parametrize(("eye", "scale", "angle"), [(RIGHT_EYE, 150, -0.7), (LEFT_EYE, 150, 0.3)])
def test_a_dot_on_an_eye_comes_to_lie_on_the_templates_eye(eye, scale: float, angle: float) -> None:
    transform = similarity(scale, angle, 90, 80)
    x, y = apply(transform, np.array([eye]))[0]
    rows, columns = np.mgrid[:260, :300] + 0.5
    dot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * (0.03 * scale) ** 2))
    frame = np.repeat(dot.astype(np.uint8)[..., None], 3, axis=2)
    crop = np.stack(list(crop_faces(frame[None], transform[None], 64)))[0, ..., 0].astype(float)
    ticks = (np.arange(64) + 0.5) / 64
    assert crop.sum(axis=0) @ ticks / crop.sum() == pytest.approx(eye[0], abs=0.004)
    assert crop.sum(axis=1) @ ticks / crop.sum() == pytest.approx(eye[1], abs=0.004)


def moving_portrait(count: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """A drawn face of 128 pixels that slides over a grey picture, and the corner where it stands in each frame."""
    faces_128 = synthetic.render_clip(2, 0, size=128, seconds=count / 25).video.frames
    corners = np.array([(40 + 3 * k, 30 + 2 * k) for k in range(count)])
    frames = np.full((count, 220, 260, 3), 128, np.uint8)
    for frame, face, (x, y) in zip(frames, faces_128, corners, strict=True):
        frame[y : y + 128, x : x + 128] = face
    return frames, corners


def test_a_face_that_moves_over_the_picture_stands_still_in_the_crop() -> None:
    frames, corners = moving_portrait()
    transforms = similarity_transforms(smooth_landmarks(find_landmarks(frames)))
    eyes = np.stack([apply(transform, np.array([LEFT_EYE, RIGHT_EYE])) for transform in transforms])
    drawn = corners[:, None] + 128 * np.array([LEFT_EYE, RIGHT_EYE])
    error = eyes - drawn
    middle = error[3:-3]  # smoothing lags at the ends of a clip that moves this fast
    assert np.abs(middle).max() < 128 * 0.05
    assert middle.std(axis=0).max() < 128 * 0.012
    crops = np.stack(list(crop_faces(frames, face_transforms(frames), 64)))
    assert crops.shape == (11, 64, 64, 3) and crops.dtype == np.uint8
    slide = np.abs(np.diff(frames.astype(float), axis=0)).mean()
    assert np.abs(np.diff(crops[3:-3].astype(float), axis=0)).mean() < slide / 2


def test_half_of_the_frames_must_show_the_face() -> None:
    """Frames 0, 5 and 10 are looked at."""
    frames, _ = moving_portrait()
    one_hidden, two_hidden = frames.copy(), frames.copy()
    one_hidden[5:6] = 0
    two_hidden[5:] = 0
    assert len(find_landmarks(one_hidden)) == 11
    with pytest.raises(NoFaceError, match="found in 1 of 3 sampled frames; half are needed"):
        find_landmarks(two_hidden)
