"""What sounds mean for one person's lips: added to what everybody hears, read back as it was written or refused."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedtalk_ray.errors import RunError
from fedtalk_ray.model.own_hearing import FILE, MOST_WEIGHT, OwnHearing, load_own_hearing
from fedtalk_ray.model.speech_code import LipRegression

HOPS, BINS, LIPS, MOTIONS = 22, 4, 2, 5
FEATURES = 3 * BINS


def test_lips_move_by_what_everybody_hears_and_her_own_map_beside_it() -> None:
    torch.manual_seed(0)
    encoder = LipRegression(HOPS, BINS, MOTIONS)
    torch.nn.init.normal_(encoder.linear1.weight)
    sound = torch.randn(1, 3, HOPS, BINS)
    before, features = encoder(sound), encoder.features(sound)[0].flatten(1)
    own = OwnHearing(torch.randn(LIPS, FEATURES), torch.tensor([1.0, -2.0]))
    own.join(encoder)
    moved = (encoder(sound) - before)[0]
    assert torch.allclose(moved[:, :LIPS], features @ own.weight.T + own.bias, atol=1e-4)
    assert not moved[:, LIPS:].any()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = OwnHearing(torch.randn(LIPS, FEATURES), torch.randn(LIPS))
    own.save(tmp_path)
    read = load_own_hearing(tmp_path, LIPS, FEATURES)
    assert read is not None
    assert torch.equal(read.weight, own.weight) and torch.equal(read.bias, own.bias)
    assert load_own_hearing(tmp_path / "nobody", LIPS, FEATURES) is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"weight": torch.zeros(LIPS, FEATURES + 1)}, "does not fit this backbone"),
        ({"weight": torch.zeros(LIPS + 1, FEATURES)}, "does not fit this backbone"),
        ({"bias": torch.zeros(LIPS + 1)}, "does not fit this backbone"),
        ({"more": torch.zeros(1)}, "does not fit this backbone"),
        ({"weight": torch.full((LIPS, FEATURES), -2 * MOST_WEIGHT)}, "values of more than 100"),
        ({"bias": torch.full((LIPS,), math.nan)}, "values that are no numbers"),
    ],
)
def test_what_no_person_has_is_refused_by_its_file(
    change: dict[str, torch.Tensor], complaint: str, tmp_path: Path
) -> None:
    right = {"weight": torch.zeros(LIPS, FEATURES), "bias": torch.zeros(LIPS)}
    save_file(right | change, str(tmp_path / FILE))
    with pytest.raises(RunError, match=complaint) as caught:
        load_own_hearing(tmp_path, LIPS, FEATURES)
    assert FILE in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    OwnHearing(torch.zeros(LIPS, FEATURES), torch.zeros(LIPS)).save(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-10])
    with pytest.raises(RunError, match="is damaged"):
        load_own_hearing(tmp_path, LIPS, FEATURES)
