"""What a person's own mouth shows: her frames of like lips, read back as they were written or refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedtalk_ray.errors import RunError
from fedtalk_ray.media.face_template import region_edges
from fedtalk_ray.media.flat_mouth import SIDE
from fedtalk_ray.model.own_mouth import FILE, MOST_FRAMES, WIDTH, OwnMouth, load_own_mouth

LIPS = 6
PLACES = (3, SIDE, SIDE)
CROP, LOWER = 144, 96


def frames(*values: int) -> torch.Tensor:
    """Mouths of one brightness each, uint8 [N, *PLACES]."""
    return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, *PLACES).clone()


def along(*apertures: float) -> torch.Tensor:
    """Lip shapes that differ in the first number alone."""
    shapes = torch.zeros(len(apertures), LIPS)
    shapes[:, 0] = torch.tensor(apertures)
    return shapes


def opened(face_points: np.ndarray, count: int) -> np.ndarray:
    """So many times the same face, its lower inner lip lowered: [count, 68, 2]."""
    moved = np.repeat(face_points[None], count, axis=0)
    moved[:, [65, 66, 67], 1] += 0.06
    return moved


def test_a_mouth_shows_the_frame_whose_lips_are_like_it_and_means_between_two() -> None:
    mouth = OwnMouth(along(-1, 2), frames(60, 240))
    shown = mouth.shown(along(-1.05, 1.9, 0.5, -9))
    assert shown.shape == (4, *PLACES)
    assert shown[:, 0, 0, 0].tolist() == pytest.approx([60, 240, 150, 60], abs=0.01)
    assert torch.equal(shown, shown[:, :1, :1, :1].expand_as(shown))


def test_a_frame_counts_by_a_gaussian_of_its_shape() -> None:
    mouth = OwnMouth(along(0, WIDTH), frames(0, 100))
    # At the first frame's shape the second lies one width away.
    share = math.exp(-0.5) / (1 + math.exp(-0.5))
    assert float(mouth.shown(along(0))[0, 0, 0, 0]) == pytest.approx(100 * share, abs=1e-4)


def test_it_is_laid_between_the_lips_in_the_light_of_the_skin_around_them(face_points: np.ndarray) -> None:
    """Her skin was 200 bright and the dark of her mouth 80; where she is now her skin is 150."""
    flat = frames(200)
    flat[:, :, 15:33, 4:-4] = 80
    moved = opened(face_points, 1)
    soft = torch.full((3, LOWER, LOWER), 150 / 127.5 - 1)
    laid = OwnMouth(along(0), flat).laid(soft, face_points, moved, along(0.3))
    assert laid.shape == (1, 4, LOWER, LOWER)
    left, top, _, _ = region_edges(CROP, "lower face")
    middle = moved[0, [62, 66]].mean(0) * CROP - (left, top)
    place = laid[0, :, int(middle[1]), int(middle[0])]
    assert place[3] == 1 and ((place[:3] + 1) * 127.5).tolist() == pytest.approx([30] * 3, abs=1)
    assert 0 < (laid[0, 3] > 0).float().mean() < 0.2


def test_each_frame_shows_its_own_shape_and_no_colour_beyond_black_and_white(face_points: np.ndarray) -> None:
    """Stripes of dark and teeth, sampled by curves that go beyond both; and a mouth that is dark alone."""
    flat = frames(128, 128)
    flat[:, :, 15:33, 4:-4] = 0
    flat[0, :, 15:33, 4:-4:4] = 255
    moved = opened(face_points, 2)
    laid = OwnMouth(along(0, 3), flat).laid(torch.zeros(3, LOWER, LOWER), face_points, moved, along(0, 3))
    shown = laid[:, 3] > 0.9
    assert laid[:, :3].abs().max() <= 1
    assert laid[0, 0][shown[0]].max() > 0.9 and laid[1, 0][shown[1]].max() < -0.9


def test_no_more_frames_are_kept_than_that_and_evenly(tmp_path: Path) -> None:
    many = 2 * MOST_FRAMES - 1
    mouth = OwnMouth(along(*range(many)), frames(5).expand(many, -1, -1, -1))
    mouth.save(tmp_path)
    kept = load_file(str(tmp_path / FILE))
    assert kept["shapes"][:, 0].tolist() == list(range(0, many, 2)) and len(kept["mouths"]) == MOST_FRAMES


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mouth = OwnMouth(torch.randn(30, LIPS), torch.randint(0, 256, (30, *PLACES), dtype=torch.uint8))
    mouth.save(tmp_path)
    read, asked = load_own_mouth(tmp_path, LIPS), torch.randn(5, LIPS)
    assert read is not None
    assert torch.equal(read.shown(asked), mouth.shown(asked))
    assert load_own_mouth(tmp_path / "nobody", LIPS) is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"shapes": torch.zeros(2, LIPS + 1)}, "does not fit this backbone"),
        ({"mouths": torch.zeros(3, *PLACES, dtype=torch.uint8)}, "does not fit this backbone"),
        ({"mouths": torch.zeros(2, 3, 16, 32, dtype=torch.uint8)}, "does not fit this backbone"),
        ({"mouths": torch.zeros(2, *PLACES)}, "does not fit this backbone"),
        ({"shapes": torch.zeros(0, LIPS)}, "does not fit this backbone"),
        ({"weights": torch.ones(2)}, "does not fit this backbone"),
        ({"shapes": along(0, math.nan)}, "values that are no numbers"),
        ({"shapes": along(0, 1e20)}, "lip shapes beyond 100 deviations"),
        ({"shapes": torch.tensor(1.0), "mouths": torch.tensor(1, dtype=torch.uint8)}, "does not fit this backbone"),
    ],
)
def test_what_no_person_has_is_refused_by_its_file(
    change: dict[str, torch.Tensor], complaint: str, tmp_path: Path
) -> None:
    right = {"shapes": along(0, 1), "mouths": frames(5, 6)}
    save_file(right | change, str(tmp_path / FILE))
    with pytest.raises(RunError, match=complaint) as caught:
        load_own_mouth(tmp_path, LIPS)
    assert FILE in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    OwnMouth(along(0), frames(5)).save(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-10])
    with pytest.raises(RunError, match="is damaged"):
        load_own_mouth(tmp_path, LIPS)
