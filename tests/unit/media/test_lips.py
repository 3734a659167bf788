import numpy as np
import pytest

from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.evaluation.metrics import correlation
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE
from fedtalk_ray.media.lips import aperture_of, face_landmarks, lip_aperture, lip_motion, lips_of
from fedtalk_ray.media.speech import spoken
from fedtalk_ray.media.video import SAMPLE_RATE


def test_aperture_by_hand() -> None:
    """Eyes 10 apart, inner lips 3, 4 and 5 apart: (3 + 4 + 5) / 3 / 10 = 0.4."""
    points = np.repeat(np.random.default_rng(0).normal(size=(1, 68, 2)), 2, axis=0)
    points[:, 36:42] = (-5, 1)
    points[:, 42:48] = (5, 1)
    for upper, lower, gap in ((61, 67, 3), (62, 66, 4), (63, 65, 5)):
        points[:, lower] = points[:, upper]
        points[0, lower, 1] += gap
    assert aperture_of(points) == pytest.approx([0.4, 0.0])
    assert aperture_of(points * 7 + 100) == pytest.approx([0.4, 0.0])
    assert aperture_of(points).dtype == np.float32


def test_aperture_is_read_off_drawn_people_and_their_eyes_lie_where_the_template_has_them() -> None:
    clip = render_clip(1, 0, size=128, seconds=0.8)
    measured = lip_aperture(clip.video.frames)
    assert correlation(measured, clip.aperture) > 0.9
    points = face_landmarks(clip.video.frames)
    assert points[:, 36:42].mean((0, 1)) == pytest.approx(LEFT_EYE, abs=0.03)
    assert points[:, 42:48].mean((0, 1)) == pytest.approx(RIGHT_EYE, abs=0.03)


def test_no_frames_and_wrong_frames() -> None:
    assert lip_aperture(np.empty((0, 64, 64, 3), np.uint8)).shape == (0,)
    with pytest.raises(ValueError, match=r"square crops, got uint8 \[1, 48, 64, 3\]"):
        lip_aperture(np.zeros((1, 48, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="got float32"):
        lip_aperture(np.zeros((1, 64, 64, 3), np.float32))


def test_spoken_runs_from_the_first_to_the_last_loud_frame() -> None:
    hop = SAMPLE_RATE // 25
    volume = np.full(20, 0.01)
    volume[[5, 6, 7, 8, 11, 12]] = 0.5
    volume[13] = 0.16  # 9.9 dB down: still spoken
    volume[14] = 0.10  # 14 dB down: not
    tone = np.sin(2 * np.pi * 200 * np.arange(20 * hop) / SAMPLE_RATE)
    audio = (np.repeat(volume, hop) * tone).astype(np.float32)
    assert spoken(audio, 20) == slice(5, 14)
    assert spoken(audio, 10) == slice(5, 9)
    assert spoken(audio[: 12 * hop], 20) == slice(5, 12)
    assert spoken(np.zeros(20 * hop, np.float32), 20) == slice(0, 20)
    assert spoken(np.zeros(0, np.float32), 20) == slice(0, 20)


def speaking(frames: int, swing: float) -> np.ndarray:
    """Points [T, 68, 2] in fractions of a crop, whose lower lip goes down by `swing` eye distances and back."""
    points = np.repeat(np.random.default_rng(0).uniform(0.2, 0.8, (1, 68, 2)), frames, axis=0)
    points[:, 36:42] = (0.3, 0.4)
    points[:, 42:48] = (0.7, 0.4)
    for upper, lower in ((61, 67), (62, 66), (63, 65)):
        points[:, lower] = points[:, upper]
        points[:, lower, 1] += 0.4 * swing * (np.arange(frames) % 2)
    return points


def test_of_somebody_who_speaks_it_is_known_how_far_her_lips_are_from_where_they_sit() -> None:
    """The lips open by 0.1 eye distances in every other frame of 30: 0.1 then, and 0.1 * 0.4 / 2 below their mean."""
    points = speaking(30, 0.1)
    for index in (4, 7):
        found = lips_of(points, index)
        np.testing.assert_array_equal(found, lip_motion(points)[index])
        assert found[0] == pytest.approx(0.1 * (index % 2), abs=1e-6)
        lower = 1 + 2 * (66 - 48) + 1
        assert found[lower] == pytest.approx(0.02 * (index % 2 * 2 - 1), abs=1e-6)
    assert np.isnan(lips_of(points[:1], 0)[1:]).all(), "nothing is known from a photo"
