"""What a person's own mouth shows: her frames of like lips, read back as they were written or refused."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedtalk_ray.errors import RunError
from fedtalk_ray.model.open_mouth import ACROSS, ALONG, MOST_LIGHT
from fedtalk_ray.model.own_mouth import FILE, FINER, MOST_FRAMES, WIDTH, OwnMouth, load_own_mouth

LIPS = 6
PLACES = (3, FINER * ACROSS, FINER * ALONG)


def frames(*values: float) -> torch.Tensor:
    """Insides of one colour each, [N, *PLACES]."""
    return torch.tensor(values)[:, None, None, None].expand(-1, *PLACES).clone()


def along(*apertures: float) -> torch.Tensor:
    """Lip shapes that differ in the first number alone."""
    shapes = torch.zeros(len(apertures), LIPS)
    shapes[:, 0] = torch.tensor(apertures)
    return shapes


def test_a_mouth_shows_the_frame_whose_lips_are_like_it_and_means_between_two() -> None:
    mouth = OwnMouth(along(-1, 2), frames(0.25, 1.0), torch.ones(2))
    shown = mouth.shown(along(-1.05, 1.9, 0.5, -9))
    assert shown.shape == (4, *PLACES)
    assert shown[:, 0, 0, 0].tolist() == pytest.approx([0.25, 1.0, 0.625, 0.25], abs=1e-4)
    assert torch.equal(shown, shown[:, :1, :1, :1].expand_as(shown))


def test_a_frame_counts_by_a_gaussian_of_its_shape_times_its_weight() -> None:
    mouth = OwnMouth(along(0, WIDTH), frames(0.0, 1.0), torch.tensor([1.0, 3.0]))
    # At the first frame's shape the second lies one width away.
    share = 3 * math.exp(-0.5) / (1 + 3 * math.exp(-0.5))
    assert float(mouth.shown(along(0))[0, 0, 0, 0]) == pytest.approx(share, abs=1e-6)


def test_no_more_frames_are_kept_than_that_and_evenly(tmp_path: Path) -> None:
    many = 2 * MOST_FRAMES - 1
    mouth = OwnMouth(along(*range(many)), frames(0.5).expand(many, -1, -1, -1), torch.ones(many))
    mouth.save(tmp_path)
    kept = load_file(str(tmp_path / FILE))
    assert kept["shapes"][:, 0].tolist() == list(range(0, many, 2)) and len(kept["weights"]) == MOST_FRAMES


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mouth = OwnMouth(torch.randn(30, LIPS), MOST_LIGHT * torch.rand(30, *PLACES), torch.rand(30) + 0.1)
    mouth.save(tmp_path)
    read, asked = load_own_mouth(tmp_path, LIPS), torch.randn(5, LIPS)
    assert read is not None
    assert torch.equal(read.shown(asked), mouth.shown(asked))
    assert load_own_mouth(tmp_path / "nobody", LIPS) is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"shapes": torch.zeros(2, LIPS + 1)}, "does not fit this backbone"),
        ({"colours": torch.zeros(3, *PLACES)}, "does not fit this backbone"),
        ({"colours": torch.zeros(2, 3, ACROSS, ALONG)}, "does not fit this backbone"),
        ({"weights": torch.zeros(0)}, "does not fit this backbone"),
        ({"weights": torch.tensor([1.0, 0.0])}, "colours or weights that are none"),
        ({"colours": frames(0.5, 2 * MOST_LIGHT)}, "colours or weights that are none"),
        ({"colours": frames(0.5, -0.1)}, "colours or weights that are none"),
        ({"shapes": along(0, math.nan)}, "values that are no numbers"),
    ],
)
def test_what_no_person_has_is_refused_by_its_file(
    change: dict[str, torch.Tensor], complaint: str, tmp_path: Path
) -> None:
    right = {"shapes": along(0, 1), "colours": frames(0.5, 0.6), "weights": torch.ones(2)}
    save_file(right | change, str(tmp_path / FILE))
    with pytest.raises(RunError, match=complaint) as caught:
        load_own_mouth(tmp_path, LIPS)
    assert FILE in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    OwnMouth(along(0), frames(0.5), torch.ones(1)).save(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-10])
    with pytest.raises(RunError, match="is damaged"):
        load_own_mouth(tmp_path, LIPS)
