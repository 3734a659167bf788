"""Backbone sizes by name: `tiny` for a CPU, `base` for one GPU of 12-24 GB, `large` for one of 40-80 GB.

A preset says which autoencoder makes its latents and how wide the denoiser is. `training_memory` tells beforehand what
LoRA training of it holds: the network runs forward on torch's meta device, which computes shapes and no values, and
what autograd keeps for the backward pass is added up. `python -m fedtalk_ray.model.presets` prints the table of
docs/presets.md.
"""

import difflib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import nn
from torch.overrides import TorchFunctionMode

from fedtalk_ray.errors import UserError
from fedtalk_ray.model import adapters
from fedtalk_ray.model.denoiser import FrameBlock, TalkingHeadDenoiser
from fedtalk_ray.recipe import AdapterConfig, LocalConfig

TABLE_BATCH, TABLE_RANK = LocalConfig().batch_size, AdapterConfig().rank
"""Windows a step and LoRA rank that the table is made for: those that `fedtalk train` starts from."""


class PresetError(UserError):
    """No preset of that name; the message is one line."""


@dataclass(frozen=True)
class Preset:
    """One size of backbone: what it is trained on, and the arguments of its `TalkingHeadDenoiser`."""

    name: str
    frame_size: int
    """Side of the face crops in pixels."""
    autoencoder: str
    """"lower-face", "patch" or a hub id, as `model.autoencoder.load_autoencoder` takes it."""
    region: str
    """The part of the crop that latents are of (`media.face_template.REGIONS`)."""
    latent_channels: int
    latent_size: int
    """Side of the latents in cells; a multiple of 2 ** (levels - 1), since each level but the last halves it."""
    widths: tuple[int, ...]
    """Channels of each level, finest first; multiples of 8, the number of normalisation groups."""
    blocks_per_level: int
    window: int
    """Frames that are denoised together, at 25 a second."""
    motions: int
    """Numbers a frame that the sound is squeezed into."""
    dropout: float


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("tiny", 144, "lower-face", "lower face", 32, 12, (48, 80, 112), 1, 8, 8, 0.1),
        Preset("base", 256, "stabilityai/sd-vae-ft-mse", "face", 4, 32, (256, 512, 768), 2, 16, 32, 0.1),
        Preset("large", 512, "stabilityai/sd-vae-ft-mse", "face", 4, 64, (320, 640, 960, 1280), 2, 16, 64, 0.1),
    )
}


def preset(name: str) -> Preset:
    """The preset of that name. Raises `PresetError` that names the nearest one."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)
        raise PresetError(f"unknown preset {name!r}; the nearest of {', '.join(PRESETS)} is {near[0]!r}")
    return PRESETS[name]


def sizes(preset: Preset) -> dict[str, Any]:
    """The arguments of `TalkingHeadDenoiser` that do not follow from the latents."""
    arguments = asdict(preset)
    for elsewhere in ("name", "frame_size", "autoencoder", "region", "latent_channels", "latent_size"):
        del arguments[elsewhere]
    return arguments


def build(preset: Preset, **overrides: Any) -> TalkingHeadDenoiser:
    """An untrained denoiser of this size; `overrides` are further or other arguments of `TalkingHeadDenoiser`.

    Weights are drawn from torch's global generator. Under `torch.device("meta")` it takes no memory.
    """
    latents = {"latent_channels": preset.latent_channels, "latent_size": preset.latent_size, "region": preset.region}
    return TalkingHeadDenoiser(**sizes(preset) | latents | overrides)


def count_parameters(module: nn.Module) -> int:
    """Values in all parameters of a module, frozen ones included, buffers not."""
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a step of LoRA training holds when its backward pass begins.

    weights: backbone and both adapters. optimiser: gradients of the shared adapter and AdamW's two moments of each.
    activations: what autograd keeps; with checkpointing, the blocks' inputs and the largest block's recomputed part.
    """

    weights: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.optimiser + self.activations


def training_memory(
    preset: Preset,
    batch_size: int,
    rank: int,
    checkpointing: bool,
    bytes_per_value: int = 4,
    autocast: bool = False,
) -> TrainingMemory:
    """What LoRA training of the shared adapter holds, for `batch_size` windows a step; no weights are drawn.

    bytes_per_value: of everything stored, 4 (float32) or 2 (bfloat16). autocast: float32 under bf16 autocast, as
    `local.autocast` trains on a GPU. Left out: the passing buffers of single operations, a library's workspace, the
    autoencoder. Dropout masks count as the CPU makes them; CUDA's are smaller.
    """
    if bytes_per_value not in (2, 4) or (autocast and bytes_per_value != 4):
        raise ValueError(f"bytes_per_value is {bytes_per_value}; it must be 4 or 2, and 4 with autocast")
    held = _held(preset, batch_size, rank, {2: torch.bfloat16, 4: torch.float32}[bytes_per_value], autocast)
    return TrainingMemory(
        weights=held.parameters * bytes_per_value,
        optimiser=3 * held.adapter * bytes_per_value,
        activations=held.recomputing if checkpointing else held.keeping,
    )


def table() -> str:
    """All presets as a Markdown table, with the memory of LoRA training by `training_memory`."""
    memory = f"GiB at {TABLE_BATCH} windows"
    head = ["preset", "pixels", "autoencoder", "latents", "window", "parameters", f"LoRA rank {TABLE_RANK}", "LoRA KiB"]
    rows = [[*head, f"{memory}, bf16 autocast", f"{memory}, all bf16"]]
    rows.append(["---"] * len(rows[0]))
    for size in PRESETS.values():
        with torch.device("meta"):
            parameters = count_parameters(build(size))
        adapter = _held(size, TABLE_BATCH, TABLE_RANK, torch.float32, True).adapter
        latents = " x ".join(map(str, (size.latent_channels, size.latent_size, size.latent_size)))
        row = [size.name, str(size.frame_size), f"`{size.autoencoder}`", latents, str(size.window), f"{parameters:,}"]
        # What crosses between client and server is float32.
        row += [f"{adapter:,}", f"{adapter * 4 / 1024:,.0f}"]
        for bytes_per_value, autocast in ((4, True), (2, False)):
            both = [
                training_memory(size, TABLE_BATCH, TABLE_RANK, checkpointing, bytes_per_value, autocast).total
                for checkpointing in (False, True)
            ]
            row.append(" / ".join(f"{total / 2**30:.2f}" for total in both))
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


class _Held(NamedTuple):
    """Values of all parameters and of the shared adapter; bytes of activations, without and with checkpointing."""

    parameters: int
    adapter: int
    keeping: int
    recomputing: int


@cache
def _held(preset: Preset, batch_size: int, rank: int, dtype: torch.dtype, autocast: bool) -> _Held:
    with torch.device("meta"):
        model = adapters.with_adapters(build(preset), rank, 2.0 * rank, AdapterConfig().identity_rank)
    trained = adapters.train_only(model.to(dtype), adapters.shared_parameters(model, "adapter"))
    model.train()
    keeping, largest_block = _kept_for_backward(model, batch_size, autocast)
    model.get_base_model().gradient_checkpointing = True
    inputs, _ = _kept_for_backward(model, batch_size, autocast)
    adapter = sum(parameter.numel() for parameter in trained)
    return _Held(count_parameters(model), adapter, keeping, inputs + largest_block)


def _kept_for_backward(model: PeftModel, batch_size: int, autocast: bool) -> tuple[int, int]:
    """Bytes that autograd keeps of one forward pass on the meta device: in all, and of the largest `FrameBlock`."""
    base = model.get_base_model()
    # A storage that is held here is not freed, so no other one gets its address.
    seen = {_address(parameter): parameter.untyped_storage() for parameter in model.parameters()}
    inputs: set[int] = set()
    kept, in_block, largest_block = 0, 0, 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept, in_block
        address, storage = _address(tensor), tensor.untyped_storage()
        if address not in seen:
            seen[address] = storage
            kept += storage.nbytes()
            # Checkpointing keeps a block's inputs anyway: they are no part of what it computes again.
            in_block += storage.nbytes() if address not in inputs else 0
        return tensor

    def begin(block: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal in_block, inputs
        in_block, inputs = 0, {_address(part) for part in arguments if isinstance(part, torch.Tensor)}

    def end(block: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
        nonlocal largest_block
        largest_block = max(largest_block, in_block)

    with ExitStack() as stack:
        for block in base.modules():
            if isinstance(block, FrameBlock):
                stack.enter_context(block.register_forward_pre_hook(begin))
                stack.enter_context(block.register_forward_hook(end))
        if autocast:
            stack.enter_context(_CudaAutocast())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor))
        # Nothing runs backward: what is kept for it is known when the forward pass ends.
        _loss(model, batch_size)
    return kept, largest_block


def _loss(model: PeftModel, batch_size: int) -> torch.Tensor:
    """The terms of `training.losses.window_loss` that are on by default, on windows without values."""
    base = model.get_base_model()
    config = base.config

    def windows(*shape: int) -> torch.Tensor:
        return torch.empty(batch_size, *shape, device="meta", dtype=base.dtype)

    cells = (config.latent_channels, config.latent_size, config.latent_size)
    speech = windows(config.window, config.speech_hops, config.mel_bins)
    timestep, heard = windows().long(), windows().bool()
    predicted = model(windows(config.window, *cells), timestep, speech, windows(*cells), heard).float()
    error = predicted - windows(config.window, *cells)
    return error.square().mean() + (error[:, 1:] - error[:, :-1]).abs().mean()


def _address(tensor: torch.Tensor) -> int:
    """Names a tensor's storage; on the meta device `data_ptr` is 0 for all."""
    return tensor.untyped_storage()._cdata


class _CudaAutocast(TorchFunctionMode):
    """What `torch.autocast("cuda", torch.bfloat16)` does to the layers of the denoiser, for tensors on "meta"."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (torch.conv1d, torch.conv2d, nn.functional.linear):
            dtype = torch.bfloat16
        elif function is nn.functional.group_norm:
            dtype = torch.float32
        else:
            return function(*args, **kwargs)
        return function(*(_cast(value, dtype) for value in args), **{key: _cast(v, dtype) for key, v in kwargs.items()})


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


if __name__ == "__main__":
    print(table())
