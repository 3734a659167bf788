"""Presets: sizes that are what docs/presets.md says, a step of each, and a memory estimate held to real allocations."""

from pathlib import Path

import pytest
import torch

from fedtalk_ray.model import adapters
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.held_memory import LiveBytes
from fedtalk_ray.model.presets import PRESETS, build, count_parameters, training_memory
from fedtalk_ray.model.schedule import make_scheduler
from fedtalk_ray.recipe import LossConfig
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.losses import window_loss

PARAMETERS = {"tiny": 3_012_608, "base": 177_712_548, "large": 594_056_484}
ADAPTER = {"tiny": 316_096, "base": 2_591_296, "large": 5_449_792}
"""Values of a LoRA adapter of rank 8."""

by_name = pytest.mark.parametrize("name", PRESETS)


def adapted(name: str, device: str) -> tuple[torch.nn.Module, list[torch.nn.Parameter]]:
    """A preset with adapters of rank 8 and 4, and the shared one's parameters, ready to train."""
    torch.manual_seed(0)
    with torch.device(device):
        model = adapters.with_adapters(build(PRESETS[name]), 8, 16.0, 4)
    return model.train(), adapters.train_only(model, adapters.shared_parameters(model, "adapter"))


def random_windows(count: int) -> WindowBatch:
    size = PRESETS["tiny"]
    latents = torch.randn(count, size.window + 1, size.latent_channels, size.latent_size, size.latent_size)
    return WindowBatch(latents[:, 1:], torch.randn(count, size.window, 44, 40), latents[:, 0])


def real_loss(model: torch.nn.Module, batch: WindowBatch) -> torch.Tensor:
    return window_loss(model, make_scheduler("sample"), batch, LossConfig(), torch.Generator().manual_seed(0)).total


@by_name
def test_parameters_and_an_adapters_are_as_many_as_the_page_says(name: str, repository: Path) -> None:
    """Those of an adapter are its rank times inputs and outputs."""
    page = (repository / "docs" / "presets.md").read_text(encoding="utf-8")
    assert f"{PARAMETERS[name]:,}" in page and f"{ADAPTER[name]:,}" in page
    with torch.device("meta"):
        denoiser = build(PRESETS[name])
    assert count_parameters(denoiser) == PARAMETERS[name]
    count = 0
    for path, layer in denoiser.named_modules():
        if path.split(".")[-1] in TalkingHeadDenoiser.adapter_layers and hasattr(layer, "weight"):
            outputs, *inputs = layer.weight.shape
            count += 8 * (outputs + torch.Size(inputs).numel())
    assert count == ADAPTER[name] == sum(parameter.numel() for parameter in adapted(name, "meta")[1])


def test_weights_and_optimiser_by_hand() -> None:
    memory = training_memory(PRESETS["tiny"], 1, 8, False)
    # The identity adapter has rank 4, half the shared one's, and leaves out what hears: three convolutions (40 to 96
    # channels in 5 taps, 96 to 96 in 5 and in 3), their 11 last hops to 8 numbers, and those to 32 x 12 x 12 cells.
    hearing = (40 * 5 + 96) + (96 * 5 + 96) + (96 * 3 + 96) + (96 * 11 + 8) + (8 + 32 * 12**2)
    assert memory.weights == 4 * (PARAMETERS["tiny"] + ADAPTER["tiny"] + ADAPTER["tiny"] // 2 - 4 * hearing)
    # A gradient and AdamW's two moments.
    assert memory.optimiser == 4 * 3 * ADAPTER["tiny"]
    assert memory.total == memory.weights + memory.optimiser + memory.activations
    half = training_memory(PRESETS["tiny"], 1, 8, False, 2)
    assert half.weights * 2 == memory.weights
    # A dropout mask, one for each residual block, is a byte a value in either: 8 frames a window, three blocks of 48
    # channels, three of 80 and four of 112.
    masks = 8 * (3 * 48 * 12**2 + 3 * 80 * 6**2 + 4 * 112 * 3**2)
    assert half.activations == pytest.approx((memory.activations + masks) / 2, rel=0.001)
    with pytest.raises(ValueError, match="bytes_per_value is 8; it must be 4 or 2, and 4 with autocast"):
        training_memory(PRESETS["tiny"], 1, 8, False, 8)


def test_a_step_never_holds_much_more_than_the_estimate() -> None:
    """Allocation by allocation through a whole step."""
    model, _ = adapted("tiny", "cpu")
    estimate = training_memory(PRESETS["tiny"], 2, 8, False)
    with LiveBytes(model) as live:
        real_loss(model, random_windows(2)).backward()
    assert 0.99 * estimate.activations < live.peak < 1.2 * estimate.activations
