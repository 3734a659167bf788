"""What a person's own mouth shows: her frames of like lips, read back as they were written or refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fedtalk_ray.media.face_template import region_edges
from fedtalk_ray.media.flat_mouth import SIDE
from fedtalk_ray.model.own_mouth import WIDTH, OwnMouth, load_own_mouth

LIPS = 6
PLACES = (3, SIDE, SIDE)


def frames(*values: int) -> torch.Tensor:
    """Mouths of one brightness each, uint8 [N, *PLACES]."""
    return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, *PLACES).clone()


def along(*apertures: float) -> torch.Tensor:
    """Lip shapes that differ in the first number alone."""
    shapes = torch.zeros(len(apertures), LIPS)
    shapes[:, 0] = torch.tensor(apertures)
    return shapes


def test_a_frame_counts_by_a_gaussian_of_its_shape() -> None:
    mouth = OwnMouth(along(0, WIDTH), frames(0, 100))
    # At the first frame's shape the second lies one width away.
    share = math.exp(-0.5) / (1 + math.exp(-0.5))
    assert float(mouth.shown(along(0))[0, 0, 0, 0]) == pytest.approx(100 * share, abs=1e-4)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mouth = OwnMouth(torch.randn(30, LIPS), torch.randint(0, 256, (30, *PLACES), dtype=torch.uint8))
    mouth.save(tmp_path)
    read, asked = load_own_mouth(tmp_path, LIPS), torch.randn(5, LIPS)
    assert read is not None
    assert torch.equal(read.shown(asked), mouth.shown(asked))
    assert load_own_mouth(tmp_path / "nobody", LIPS) is None


def test_it_is_laid_between_the_lips_in_the_light_of_the_skin_around_them(face_points: np.ndarray) -> None:
    """Her skin was 200 bright and the dark of her mouth 80; where she is now her skin is 150."""
    flat = frames(200)
    flat[:, :, 15:33, 4:-4] = 80
    moved = np.repeat(face_points[None], 1, axis=0)
    moved[:, [65, 66, 67], 1] += 0.06
    soft = torch.full((3, 96, 96), 150 / 127.5 - 1)
    laid = OwnMouth(along(0), flat).laid(soft, face_points, moved, along(0.3))
    assert laid.shape == (1, 4, 96, 96)
    left, top, _, _ = region_edges(144, "lower face")
    middle = moved[0, [62, 66]].mean(0) * 144 - (left, top)
    place = laid[0, :, int(middle[1]), int(middle[0])]
    assert place[3] == 1 and ((place[:3] + 1) * 127.5).tolist() == pytest.approx([30] * 3, abs=1)
    assert 0 < (laid[0, 3] > 0).float().mean() < 0.2
