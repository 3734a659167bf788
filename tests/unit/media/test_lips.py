import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from fedtalk_ray.evaluation.metrics import correlation
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE
from fedtalk_ray.media.faces import crop_faces, find_landmarks, similarity_transforms, smooth_landmarks
from fedtalk_ray.media.lips import aperture_of, face_landmarks, lip_aperture, lip_motion, lips_of
from fedtalk_ray.media.speech import spoken
from fedtalk_ray.media.video import SAMPLE_RATE, read_video


def drawn_face(opening: float, side: int = 64) -> np.ndarray:
    """A face drawn in the template's geometry, its mouth open by `opening` of the side. uint8 [side, side, 3]."""
    n = 256
    image = Image.new("RGB", (n, n), (90, 120, 150))
    pen = ImageDraw.Draw(image)

    def ellipse(x: float, y: float, rx: float, ry: float, colour: tuple[int, int, int]) -> None:
        pen.ellipse([(x - rx) * n, (y - ry) * n, (x + rx) * n, (y + ry) * n], fill=colour)

    eyes = LEFT_EYE[1]
    ellipse(0.5, eyes + 0.12, 0.40, 0.60, (205, 160, 135))
    for x, y in (LEFT_EYE, RIGHT_EYE):
        brow = [((x - 0.1) * n, (y - 0.09) * n), (x * n, (y - 0.115) * n), ((x + 0.1) * n, (y - 0.09) * n)]
        pen.line(brow, fill=(70, 45, 30), width=8)
        ellipse(x, y, 0.07, 0.03, (240, 240, 240))
        ellipse(x, y, 0.03, 0.03, (50, 30, 20))
    nose = ((0.49, 0.02), (0.46, 0.21), (0.5, 0.23), (0.54, 0.21))
    pen.line([(x * n, (eyes + below) * n) for x, below in nose], fill=(160, 115, 95), width=4)
    ellipse(0.5, eyes + 0.43, 0.13, 0.035 + opening / 2, (165, 70, 70))
    ellipse(0.5, eyes + 0.43, 0.10, opening / 2, (40, 10, 15))
    return np.array(image.filter(ImageFilter.GaussianBlur(2)).resize((side, side), Image.Resampling.BOX))


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


@pytest.mark.parametrize("side", [64, 128])
def test_aperture_follows_a_drawn_mouth(side: int) -> None:
    openings = np.array([0.02, 0.12, 0.0, 0.06, 0.14, 0.1, 0.04, 0.08])
    measured = lip_aperture(np.stack([drawn_face(opening, side) for opening in openings]))
    assert measured.shape == (8,)
    assert correlation(measured, openings) > 0.99
    slope = np.polyfit(openings / (RIGHT_EYE[0] - LEFT_EYE[0]), measured, 1)[0]
    assert 0.7 < slope < 1.1


def test_a_repeated_frame_reads_as_it_did() -> None:
    open_, closed = drawn_face(0.12), drawn_face(0.0)
    apart = lip_aperture(np.stack([open_, closed]))
    assert lip_aperture(np.stack([open_, open_, closed, closed, open_])) == pytest.approx(apart[[0, 0, 1, 1, 0]])


@pytest.mark.parametrize("side", [64, 100])
def test_landmarks_lie_where_the_eyes_were_drawn(side: int) -> None:
    points = face_landmarks(drawn_face(0.05, side)[None])[0]
    assert points[36:42].mean(axis=0) == pytest.approx(LEFT_EYE, abs=0.015)
    assert points[42:48].mean(axis=0) == pytest.approx(RIGHT_EYE, abs=0.015)


def test_equal_frames_give_equal_values() -> None:
    """A copied reference frame must come out as a constant series, which correlates with nothing."""
    assert np.ptp(lip_aperture(np.stack([drawn_face(0.05)] * 3))) == 0.0


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


def crop_and_full_aperture(path: Path) -> tuple[np.ndarray, np.ndarray, slice]:
    """A real clip's aperture read from 64 px crops and from its whole frames [T], and where it is spoken."""
    video = read_video(path)
    points = find_landmarks(video.frames)
    crops = np.stack(list(crop_faces(video.frames, similarity_transforms(smooth_landmarks(points)), 64)))
    return lip_aperture(crops), aperture_of(points), spoken(video.audio, len(video.frames))


@pytest.mark.grid
def test_real_crops_tell_what_whole_frames_tell(grid_root: Path) -> None:
    """Small crops keep the lips' motion; another speaker's sentence does not share it while both speak."""
    clips = [crop_and_full_aperture(grid_root / clip) for clip in ("s2/pwij3p.mpg", "s23/priazn.mpg", "s31/bgix9s.mpg")]
    agreements = [correlation(small, full) for small, full, _ in clips]
    assert min(agreements) > 0.85, agreements
    others = [correlation(a[said], b[said]) for (a, _, said), (b, _, _) in itertools.permutations(clips, 2)]
    assert np.mean(others) < 0.4, others


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


@pytest.mark.parametrize(("frames", "swing", "rate"), [(1, 0.1, 25), (24, 0.1, 25), (30, 0.02, 25), (49, 0.1, 50)])
def test_a_photo_or_somebody_silent_says_how_far_lips_are_apart_and_no_more(
    frames: int, swing: float, rate: int
) -> None:
    found = lips_of(speaking(frames, swing), frames - 1, rate)
    assert found[0] == pytest.approx(swing * ((frames - 1) % 2), abs=1e-6) and np.isnan(found[1:]).all()
