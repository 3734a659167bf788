"""LoRA adapters on the denoiser (PEFT): `shared` is federated, `identity` is a client's own and stays with it.

Adapters go on every convolution and linear layer of the blocks, `shared` also on the speech encoder. Adapting FiLM and
convolutions is what lets an adapter learn a new mouth; attention-only adapters learned nothing here.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedtalk_ray.errors import RunError
from fedtalk_ray.model.denoiser import bare_denoiser

SHARED, IDENTITY = "shared", "identity"

SPEECH_LAYERS = r"(.*\.)?speech_(encoder|map)\..*"
"""Layers that carry none of the identity adapter: what is heard is not a matter of whose face speaks. Out of a few
seconds of one voice these only unlearn: two newcomers to GRID, each with 100 steps on one clip, gained 0.29 dB of the
mouth rather than 0.07 without them, and lost 0.003 of likeness rather than 0.012, 0.018 of lip correlation rather than
0.032."""

_WEIGHTS = "adapter_model.safetensors"


def with_adapters(denoiser: Any, rank: int | None, alpha: float, identity_rank: int) -> PeftModel:
    """The denoiser with a fresh `shared` adapter (none where `rank` is None) and a fresh `identity` adapter.

    Both are zero in effect and act together; all weights are frozen. Fresh weights are drawn from torch's global
    generator: seed it to repeat them.
    """
    layers = list(denoiser.adapter_layers)
    hears = any(re.fullmatch(SPEECH_LAYERS, name) for name, _ in denoiser.named_modules())
    identity = LoraConfig(
        r=identity_rank,
        lora_alpha=2 * identity_rank,
        target_modules=layers,
        exclude_modules=SPEECH_LAYERS if hears else None,
    )
    if rank is None:
        model = get_peft_model(denoiser, identity, adapter_name=IDENTITY)
    else:
        model = get_peft_model(
            denoiser, LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers), adapter_name=SHARED
        )
        model.add_adapter(IDENTITY, identity)
    use_adapters(model)
    return model


def use_adapters(model: PeftModel, names: list[str] | None = None) -> None:
    """Lets the named adapters act, or all (their effects add up); freezes all weights, `train_only` thaws some."""
    model.base_model.set_adapter(list(model.peft_config) if names is None else names)
    model.requires_grad_(False)


def use_adapters_with_effect(model: PeftModel) -> None:
    """Lets all adapters act, but for an identity adapter that adds only zeros (its B is zero)."""
    silent = not any(bool(value.any()) for name, value in identity_parameters(model) if ".lora_B." in name)
    use_adapters(model, [name for name in model.peft_config if name != IDENTITY] if silent else None)


def shared_parameters(
    model: PeftModel, shared: str, factors: str = "ab", speech: bool = True
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """What is federated, in a fixed order: the `shared` adapter, or with "backbone" every weight of the denoiser.

    factors: "ffa" for LoRA's B alone, A then stays as it was drawn; else both, A before its B. speech: False leaves out
    what turns sound into motion, where a phase of its own has taught that.
    """
    part = f".lora_B.{SHARED}." if factors == "ffa" else f".{SHARED}."
    for name, parameter in sorted(model.named_parameters()):
        if not speech and re.fullmatch(SPEECH_LAYERS, name):
            continue
        if (shared == "adapter" and part in name) or (shared == "backbone" and ".lora_" not in name):
            yield name, parameter


def lora_pairs(parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> tuple[tuple[int, int, int], ...]:
    """(outputs, rank, inputs) of each pair of `shared_parameters` with both factors; a kernel's places are inputs."""
    shapes = [parameter.shape for _, parameter in parameters]
    return tuple((b[0], a[0], a[1:].numel()) for a, b in zip(shapes[::2], shapes[1::2], strict=True))


def identity_parameters(model: PeftModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The client's own adapter, in a fixed order."""
    return ((name, parameter) for name, parameter in sorted(model.named_parameters()) if f".{IDENTITY}." in name)


def train_only(model: PeftModel, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> list[torch.nn.Parameter]:
    """Freezes everything else and returns the list for an optimiser."""
    chosen = [parameter for _, parameter in parameters]
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def to_vector(parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> np.ndarray:
    """All values in one float32 vector, in the given order: what crosses between client and server."""
    return np.concatenate([parameter.detach().float().cpu().numpy().ravel() for _, parameter in parameters])


@torch.no_grad()
def from_vector(parameters: Iterable[tuple[str, torch.nn.Parameter]], vector: np.ndarray) -> None:
    """The inverse of `to_vector`, in place. Raises `ValueError` when the length does not fit."""
    parameters = list(parameters)
    expected = sum(parameter.numel() for _, parameter in parameters)
    if vector.shape != (expected,):
        raise ValueError(f"a vector of shape {vector.shape} does not fit {expected} parameters")
    begin = 0
    for _, parameter in parameters:
        end = begin + parameter.numel()
        # Arrays out of Ray's object store are read-only, so they are copied on the way in.
        parameter.copy_(torch.from_numpy(np.array(vector[begin:end], np.float32)).view_as(parameter))
        begin = end


def backbone_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The own weights of a denoiser, in adapters or bare, under their own names, without PEFT's wrapping: what
    `save_pretrained` expects."""
    state = bare_denoiser(model).state_dict()
    return {name.replace(".base_layer", ""): value for name, value in state.items() if ".lora_" not in name}


def reset_identity(model: PeftModel, generator: torch.Generator) -> None:
    """A fresh identity adapter, zero in effect: A drawn as PEFT draws it (Kaiming uniform, a = sqrt 5), B zero."""
    with torch.no_grad():
        for name, parameter in identity_parameters(model):
            if ".lora_B." in name:
                parameter.zero_()
            else:
                bound = 1 / parameter[0].numel() ** 0.5
                parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)


def save_adapter(model: PeftModel, name: str, folder: Path) -> None:
    """Writes one adapter as a PEFT folder (adapter_config.json and adapter_model.safetensors)."""
    folder.mkdir(parents=True, exist_ok=True)
    # PEFT makes a folder of the adapter's name, and a model card beside it.
    with TemporaryDirectory(dir=folder) as place:
        model.save_pretrained(place, selected_adapters=[name])
        for file in (Path(place) / name).iterdir():
            file.rename(folder / file.name)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a PEFT folder by name. Raises `RunError` when they are missing, damaged or not finite.

    PEFT's own reading would ask the hub for a file that is missing, and unpickle one of another format.
    """
    if not (folder / "adapter_config.json").is_file():
        raise RunError(f"{folder} holds no PEFT adapter")
    if not (folder / _WEIGHTS).is_file():
        raise RunError(f"adapter {folder} is damaged: it holds no {_WEIGHTS}")
    return read_tensors(folder / _WEIGHTS, f"adapter {folder}")


def read_tensors(file: Path, called: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name. called: what it is in complaints. Raises `RunError`."""
    try:
        weights = load_file(str(file))
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{called} is damaged: {' '.join(str(error).split())}") from error
    for key, value in weights.items():
        if not torch.isfinite(value.float()).all():
            raise RunError(f"{called} is damaged: {key} holds values that are no numbers (NaN or infinite)")
    return weights


def load_identity(model: PeftModel, folder: Path | None) -> np.ndarray | None:
    """The values of a client's adapter, float32 [E], which the model then holds; None without a folder."""
    if folder is None:
        return None
    load_adapter(model, IDENTITY, folder)
    return to_vector(identity_parameters(model))


def load_adapter(model: PeftModel, name: str, folder: Path) -> None:
    """Fills an existing adapter from a PEFT folder. Raises `RunError` when it does not fit."""
    fill_adapter(model, name, read_weights(folder), f"adapter {folder}")


def fill_adapter(model: PeftModel, name: str, weights: dict[str, torch.Tensor], called: str) -> None:
    """Fills an existing adapter with tensors by their names in a PEFT folder. Raises `RunError` when they do not fit,
    which calls them as it is told."""
    try:
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
    except RuntimeError as error:
        # torch lists every tensor on a line of its own, below a title; the first is enough.
        lines = str(error).splitlines()
        raise RunError(f"{called} does not fit this backbone: {lines[1 % len(lines)].strip()}") from error
    except KeyError as error:
        raise RunError(f"{called} does not fit this backbone: missing {error.args[0]}") from error
    missing = [key for key in result.missing_keys if f".{name}." in key]
    for word, keys in (("unexpected", result.unexpected_keys), ("missing", missing)):
        if keys:
            raise RunError(f"{called} does not fit this backbone: {word} {keys[0]}")
