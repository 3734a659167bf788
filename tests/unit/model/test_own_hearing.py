"""What sounds mean for one person's lips: added to what everybody hears, read back as it was written or refused."""

from pathlib import Path

import torch

from fedtalk_ray.model.own_hearing import OwnHearing, load_own_hearing
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
