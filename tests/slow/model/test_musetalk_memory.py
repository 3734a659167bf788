"""MuseTalk's networks: published names and shapes, adapters by hand, a step's memory held to real allocations."""

import pytest
import torch

from fedtalk_ray.model.held_memory import LiveBytes
from fedtalk_ray.model.musetalk_memory import ALL_LAYERS, ATTENTION, SMALL, LoraStep


def test_attention_adapters_by_hand() -> None:
    """Rank 8 on queries, keys, values and outputs of 32 attentions: r (inputs + outputs) each."""
    levels = {320: 5, 640: 5, 1280: 6}
    own = sum(count * 4 * 8 * (width + width) for width, count in levels.items())
    cross = sum(count * 8 * (2 * (width + width) + 2 * (384 + width)) for width, count in levels.items())
    step = LoraStep(8, ATTENTION, False, torch.bfloat16)
    assert sum(parameter.numel() for parameter in step.adapter()) == own + cross == 1_496_064
    assert all(parameter.dtype == torch.bfloat16 for parameter in step.adapter())


@pytest.mark.nightly
def test_a_step_held_again_holds_less() -> None:
    peaks = []
    for checkpointing in (False, True):
        step = LoraStep(4, ALL_LAYERS, checkpointing, torch.float32, "meta", SMALL)
        with LiveBytes(step.unet, step.autoencoder) as live:
            step.loss(1).backward()
        peaks.append(live.peak)
    assert 0 < peaks[1] < 0.8 * peaks[0]


def test_what_lives_is_counted_until_it_is_freed() -> None:
    weight = torch.nn.Linear(10, 10)
    with LiveBytes(weight) as live:
        one = torch.zeros(100)
        two = one + 1
        del one
        three = (two * 2).view(10, 10)
        assert weight.weight.detach().shape == three.shape
    assert (live.now, live.peak) == (800, 800)
