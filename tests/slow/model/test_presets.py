"""Presets: sizes that are what docs/presets.md says, a step of each, and a memory estimate held to real allocations."""

import contextlib
import inspect
import io
import re
import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from fedtalk_ray.errors import UserError
from fedtalk_ray.model import adapters
from fedtalk_ray.model.autoencoder import encode_pixels, load_autoencoder, region_of
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.held_memory import LiveBytes
from fedtalk_ray.model.presets import PRESETS, PresetError, build, count_parameters, preset, training_memory
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


def random_windows(name: str, count: int, device: str) -> WindowBatch:
    size = PRESETS[name]
    cells = (size.latent_channels, size.latent_size, size.latent_size)
    latents = torch.randn(count, size.window + 1, *cells, device=device)
    return WindowBatch(latents[:, 1:], torch.randn(count, size.window, 44, 40, device=device), latents[:, 0])


def meta_loss(model: torch.nn.Module, batch: WindowBatch) -> torch.Tensor:
    """The default terms of `window_loss`, which copies timesteps to the CPU and so does not run on the meta device."""
    timestep = torch.zeros(len(batch), device=batch.latents.device).long()
    predicted = model(torch.randn_like(batch.latents), timestep, batch.speech, batch.reference, timestep == 0)
    assert predicted.shape == batch.latents.shape
    error = predicted.float() - batch.latents
    return error.square().mean() + (error[:, 1:] - error[:, :-1]).abs().mean()


def real_loss(model: torch.nn.Module, batch: WindowBatch) -> torch.Tensor:
    return window_loss(model, make_scheduler("sample"), batch, LossConfig(), torch.Generator().manual_seed(0)).total


@pytest.fixture(scope="module")
def printed() -> str:
    """What `python -m fedtalk_ray.model.presets` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module was imported before, which is no harm here
        runpy.run_module("fedtalk_ray.model.presets", run_name="__main__")
    return out.getvalue()


@pytest.fixture(scope="module")
def rows(printed: str) -> dict[str, list[str]]:
    """The table's cells by preset."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()[2:]]
    return {row[0]: row for row in cells}


def test_tiny_is_as_wide_and_deep_as_a_denoiser_of_whom_nobody_asked_a_size() -> None:
    default = inspect.signature(TalkingHeadDenoiser.__init__).parameters
    for name in ("widths", "blocks_per_level", "window", "motions", "dropout"):
        assert getattr(PRESETS["tiny"], name) == default[name].default, name


@pytest.mark.parametrize("unknown", ["bse", "Base", "basis"])
def test_an_unknown_name_is_refused_in_one_line_with_the_nearest(unknown: str) -> None:
    with pytest.raises(PresetError) as caught:
        preset(unknown)
    assert str(caught.value) == f"unknown preset {unknown!r}; the nearest of tiny, base, large is 'base'"
    assert isinstance(caught.value, UserError)


def stable_diffusions() -> AutoencoderKL:
    """Its autoencoder as shapes, since the weights are not here: four levels, so three halvings."""
    with torch.device("meta"):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )


@by_name
def test_a_preset_is_found_under_its_name_and_its_autoencoder_makes_its_latents(name: str) -> None:
    size = preset(name)
    assert size.name == name
    autoencoder = load_autoencoder(size.autoencoder) if name == "tiny" else stable_diffusions()
    assert region_of(autoencoder) == size.region == build(size).region
    latents = encode_pixels(autoencoder, torch.zeros(1, 3, size.frame_size, size.frame_size, device=autoencoder.device))
    assert latents.shape == (1, size.latent_channels, size.latent_size, size.latent_size)


@by_name
def test_parameters_are_as_many_as_the_page_says(name: str, rows: dict[str, list[str]]) -> None:
    with torch.device("meta"):
        denoiser = build(PRESETS[name])
    lips = denoiser.config.lip_numbers
    buffers = 3 * PRESETS[name].latent_channels + 3 * PRESETS[name].latent_size ** 2 + 40 * (lips - 1) + 2 * lips
    assert sum(value.numel() for value in denoiser.state_dict().values()) - buffers == PARAMETERS[name]
    assert count_parameters(denoiser) == PARAMETERS[name]
    assert rows[name][5] == f"{PARAMETERS[name]:,}"


@by_name
def test_an_adapter_has_rank_times_inputs_plus_outputs(name: str, rows: dict[str, list[str]]) -> None:
    with torch.device("meta"):
        layers = build(PRESETS[name]).named_modules()
    count = 0
    for path, layer in layers:
        if path.split(".")[-1] in TalkingHeadDenoiser.adapter_layers and hasattr(layer, "weight"):
            outputs, *inputs = layer.weight.shape
            count += 8 * (outputs + torch.Size(inputs).numel())
    assert count == ADAPTER[name] == sum(parameter.numel() for parameter in adapted(name, "meta")[1])
    assert rows[name][6:8] == [f"{ADAPTER[name]:,}", f"{ADAPTER[name] / 256:,.0f}"]


@by_name
def test_a_step_moves_the_adapter_and_nothing_else(name: str) -> None:
    device = "cpu" if name == "tiny" else "meta"
    model, trained = adapted(name, device)
    model.get_base_model().gradient_checkpointing = device == "meta"
    batch = random_windows(name, 1, device)
    before = {path: parameter.detach().clone() for path, parameter in model.named_parameters()}
    loss = (real_loss if device == "cpu" else meta_loss)(model, batch)
    loss.backward()
    assert loss.shape == () and all(parameter.grad.shape == parameter.shape for parameter in trained)
    assert sum(parameter.grad is not None for parameter in model.parameters()) == len(trained)
    torch.optim.AdamW(trained, weight_decay=0.0).step()
    if device == "cpu":  # on the meta device there are shapes and no values
        assert torch.isfinite(loss)
        moved = {path for path, parameter in model.named_parameters() if not torch.equal(parameter, before[path])}
        assert moved and all(".lora_" in path and ".shared." in path for path in moved)


def test_overrides_reach_the_denoiser_and_unknown_ones_are_refused() -> None:
    with torch.device("meta"):
        denoiser = build(PRESETS["base"], window=8, prediction_type="v_prediction")
        assert (denoiser.config.window, denoiser.config.prediction_type) == (8, "v_prediction")
        assert denoiser.config.latent_size == 32
        with pytest.raises(TypeError, match="depth"):
            build(PRESETS["base"], depth=3)


def test_memory_grows_with_the_batch_and_shrinks_with_checkpointing_and_bfloat16() -> None:
    by_batch = [training_memory(PRESETS["tiny"], count, 8, False) for count in (1, 2, 4)]
    one, two, four = (memory.activations for memory in by_batch)
    assert one < two < four
    assert four - two == 2 * (two - one), "every window holds the same"
    assert len({(memory.weights, memory.optimiser) for memory in by_batch}) == 1
    again = training_memory(PRESETS["tiny"], 4, 8, True)
    assert again.activations < four / 2 and again.total < by_batch[2].total
    half = training_memory(PRESETS["tiny"], 4, 8, False, 2)
    assert half.weights * 2 == by_batch[2].weights
    # A dropout mask, one for each residual block, is a byte a value in either: 8 frames a window, three blocks of 48
    # channels, three of 80 and four of 112.
    masks = 4 * 8 * (3 * 48 * 12**2 + 3 * 80 * 6**2 + 4 * 112 * 3**2)
    assert half.activations == pytest.approx((four + masks) / 2, rel=0.001)


def test_weights_and_optimiser_by_hand() -> None:
    memory = training_memory(PRESETS["tiny"], 1, 8, False)
    # The identity adapter has rank 4, half the shared one's, and leaves out what hears: three convolutions (40 to 96
    # channels in 5 taps, 96 to 96 in 5 and in 3), their 11 last hops to 8 numbers, and those to 32 x 12 x 12 cells.
    hearing = (40 * 5 + 96) + (96 * 5 + 96) + (96 * 3 + 96) + (96 * 11 + 8) + (8 + 32 * 12**2)
    assert memory.weights == 4 * (PARAMETERS["tiny"] + ADAPTER["tiny"] + ADAPTER["tiny"] // 2 - 4 * hearing)
    # A gradient and AdamW's two moments.
    assert memory.optimiser == 4 * 3 * ADAPTER["tiny"]
    assert memory.total == memory.weights + memory.optimiser + memory.activations


def test_an_estimate_draws_nothing() -> None:
    before = torch.get_rng_state()
    training_memory(PRESETS["tiny"], 1, 8, True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("settings", [(8, False), (2, True)])
def test_a_width_that_cannot_be_is_refused(settings: tuple[int, bool]) -> None:
    with pytest.raises(ValueError, match=f"bytes_per_value is {settings[0]}; it must be 4 or 2, and 4 with autocast"):
        training_memory(PRESETS["tiny"], 1, 8, False, *settings)


def saved_on_cpu(model: torch.nn.Module, loss: Any, batch: WindowBatch) -> int:
    """Bytes of values, not shapes, that autograd keeps, parameters left out."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(model, batch)
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in kept.values())


def test_the_estimate_is_what_autograd_saves_on_a_cpu_to_the_byte() -> None:
    model, _ = adapted("tiny", "cpu")
    batch = random_windows("tiny", 2, "cpu")
    estimate = training_memory(PRESETS["tiny"], 2, 8, False).activations
    assert saved_on_cpu(model, meta_loss, batch) == estimate
    assert saved_on_cpu(model, real_loss, batch) == pytest.approx(estimate, rel=0.01)


def test_autocast_is_torchs_own_and_keeps_more_than_float32() -> None:
    """On a CPU autocast leaves normalisation alone, on CUDA it takes it to float32; the rest is the same."""
    model, _ = adapted("tiny", "cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, arguments: (arguments[0].float(),))
    estimate = training_memory(PRESETS["tiny"], 1, 8, False, autocast=True).activations
    with torch.autocast("cpu", torch.bfloat16):
        saved = saved_on_cpu(model, real_loss, random_windows("tiny", 1, "cpu"))
    # torch keeps the bf16 copies of the trained weights for the speech encoder's second run.
    assert saved == pytest.approx(estimate, rel=0.01)
    assert saved > 1.2 * training_memory(PRESETS["tiny"], 1, 8, False).activations


@pytest.mark.parametrize(("name", "checkpointing"), [("tiny", False), ("tiny", True), ("base", True)])
def test_a_step_never_holds_much_more_than_the_estimate(name: str, checkpointing: bool) -> None:
    """Allocation by allocation through a whole step: real values on the CPU for tiny, shapes for base."""
    device, loss = ("cpu", real_loss) if name == "tiny" else ("meta", meta_loss)
    model, _ = adapted(name, device)
    model.get_base_model().gradient_checkpointing = checkpointing
    batch = random_windows(name, 2, device)
    estimate = training_memory(PRESETS[name], 2, 8, checkpointing)
    with LiveBytes(model) as live:
        loss(model, batch).backward()
    assert 0.99 * estimate.activations < live.peak < 1.2 * estimate.activations


@pytest.mark.parametrize(("side", "gib"), [(32, 6), (64, 24)])
def test_decoding_needs_what_the_page_says(side: int, gib: int) -> None:
    autoencoder = stable_diffusions()
    assert count_parameters(autoencoder) == 83_653_863
    with torch.no_grad(), LiveBytes(autoencoder) as live:
        autoencoder.decode(torch.empty(32, 4, side, side, device="meta"))
    assert live.peak / 2**30 == pytest.approx(gib, rel=0.01)


def test_the_page_shows_the_table_under_the_command_that_printed_it(printed: str, repository: Path) -> None:
    page = (repository / "docs" / "presets.md").read_text(encoding="utf-8")
    command = page.index("python -m fedtalk_ray.model.presets")
    assert printed in page and command < page.index(printed)


@pytest.mark.parametrize(("name", "without", "checkpointed"), [("base", 24, 12), ("large", 80, 40)])
def test_a_preset_fits_its_gpu(name: str, without: int, checkpointed: int, rows: dict[str, list[str]]) -> None:
    """Within three quarters of the card, under autocast: a step's peak lies up to a fifth above the estimate."""
    shown = [float(number) * 2**30 for number in re.findall(r"[\d.]+", rows[name][8])]
    assert shown[0] < 0.75 * without * 1e9 and shown[1] < 0.75 * checkpointed * 1e9
