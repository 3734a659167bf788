"""MuseTalk's networks: published names and shapes, adapters by hand, a step's memory held to real allocations."""

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.profiler import ProfilerActivity, profile

from fedtalk_ray.model.held_memory import LiveBytes
from fedtalk_ray.model.musetalk_memory import ALL_LAYERS, ATTENTION, SMALL, LoraStep, make_autoencoder, make_unet


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    with torch.device("meta"):
        return make_unet()


def test_the_unet_is_stable_diffusions_with_eight_channels_and_narrow_sound(unet: torch.nn.Module) -> None:
    """686 tensors; Stable Diffusion 1.4's 859,520,964 values, less what text of 768 numbers takes, and four more
    channels in."""
    state = unet.state_dict()
    assert len(state) == 686
    # Keys and values of the 16 cross-attentions, five at each of 320 and 640 channels, six at 1,280.
    narrower = (768 - 384) * 2 * (5 * 320 + 5 * 640 + 6 * 1280)
    assert sum(value.numel() for value in state.values()) == 859_520_964 - narrower + 4 * 320 * 9
    assert state["conv_in.weight"].shape == (320, 8, 3, 3)
    assert state["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape == (320, 384)
    assert state["mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"].shape == (1280, 384)
    assert state["up_blocks.3.attentions.2.proj_out.weight"].shape[:2] == (320, 320)


def test_the_autoencoder_is_sd_vae_ft_mses() -> None:
    with torch.device("meta"):
        autoencoder = make_autoencoder()
    assert sum(parameter.numel() for parameter in autoencoder.parameters()) == 83_653_863


def test_attention_adapters_by_hand() -> None:
    """Rank 8 on queries, keys, values and outputs of 32 attentions: r (inputs + outputs) each."""
    levels = {320: 5, 640: 5, 1280: 6}
    own = sum(count * 4 * 8 * (width + width) for width, count in levels.items())
    cross = sum(count * 8 * (2 * (width + width) + 2 * (384 + width)) for width, count in levels.items())
    step = LoraStep(8, ATTENTION, False, torch.bfloat16)
    assert sum(parameter.numel() for parameter in step.adapter()) == own + cross == 1_496_064
    assert all(parameter.dtype == torch.bfloat16 for parameter in step.adapter())


def test_every_layer_of_the_blocks_carries_an_adapter_where_all_are_named() -> None:
    step = LoraStep(8, ALL_LAYERS, False, torch.bfloat16)
    bare = {
        name
        for name, module in step.unet.get_base_model().named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
        and "block" in name
        and not (isinstance(module, BaseTunerLayer) or "lora_" in name or "base_layer" in name)
    }
    # What is left makes pictures smaller and larger.
    assert {name.split(".")[-2] for name in bare} == {"0"} and all("sampler" in name for name in bare)


def allocated_at_most(step: LoraStep) -> int:
    """Bytes by torch's own profiler: what its allocator gave out and took back, in order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step.loss(1).backward()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(held.max())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_holds_on_a_cpu_what_shapes_say(checkpointing: bool) -> None:
    """With kernels that keep attention's weights, as the estimate counts them."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        step = LoraStep(4, ALL_LAYERS, checkpointing, torch.float32, "meta", SMALL)
        with LiveBytes(step.unet, step.autoencoder) as live:
            step.loss(1).backward()
        allocated = allocated_at_most(LoraStep(4, ALL_LAYERS, checkpointing, torch.float32, "cpu", SMALL))
    assert allocated == pytest.approx(live.peak, rel=0.05)


def test_a_step_moves_the_adapter_alone() -> None:
    torch.manual_seed(0)
    step = LoraStep(4, ATTENTION, False, torch.float32, "cpu", SMALL)
    step.loss(2).backward()
    for model in (step.unet, step.autoencoder):
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == (".lora_" in name), name
    # B is zero at first, so that A learns nothing yet.
    assert any(parameter.grad.abs().max() > 0 for parameter in step.adapter() if parameter.grad is not None)
