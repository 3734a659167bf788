"""A run's released model (`runs.folder`): written in the formats that others load, and loaded again.

A diffusers pipeline and a PEFT adapter. `generate`, `evaluate`, `compare` and `report` load it to speak; `personalize`
and `audit` load the same weights into a model that trains.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model

from fedtalk_ray.errors import RunError
from fedtalk_ray.model import adapters
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.embedded import find_model
from fedtalk_ray.model.own_hearing import load_own_hearing
from fedtalk_ray.model.own_mouth import load_own_mouth
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline
from fedtalk_ray.model.speech_code import LipRegression
from fedtalk_ray.runs.folder import RunFolder


def open_model(source: str | Path) -> RunFolder:
    """The run's folder or pretrained pipeline that `source` names.

    Raises `RunError` where there is no model, and for the pipeline inside a run's folder: without the run around it
    that is another model.
    """
    run = RunFolder(find_model(source))
    around = RunFolder(run.path.absolute().parent)
    if around.exists() and run.path.absolute() == around.pipeline.absolute():
        raise RunError(f"{source} is only a part of the run, without its adapters and settings; give {around.path}")
    if not run.path.is_dir():
        raise RunError(f"run folder {run.path} does not exist")
    if not run.has_model():
        raise RunError(f"{run.path} holds no trained model (no pipeline/); train first, or give the run's own folder")
    return run


def release_model(
    run: RunFolder,
    round_number: int,
    pipeline: TalkingHeadPipeline,
    model: PeftModel,
    shared: str,
    anew: bool = False,
) -> None:
    """Makes what the model holds the run's released one: the adapter, or with `shared` "backbone" all of its weights.

    A frozen backbone is written once, or `anew` where another phase has changed it since.
    """

    def write_backbone(place: Path) -> None:
        save_backbone(pipeline, model, place)

    if shared == "adapter":
        written = run.has_model() and not anew
        run.release(
            round_number,
            None if written else write_backbone,
            lambda place: adapters.save_adapter(model, adapters.SHARED, place),
        )
    else:
        run.release(round_number, write_backbone, None)


def save_backbone(pipeline: TalkingHeadPipeline, model: torch.nn.Module, place: Path) -> None:
    """Writes the pipeline with the denoiser's own weights, without any adapter. model: the denoiser, in adapters or
    bare."""
    base = bare_denoiser(model)
    # Without diffusers' note of what an older file left out: from_config would forget what was set since.
    known = {name: value for name, value in base.config.items() if name != "_use_default_values"}
    backbone = type(base).from_config(known)
    backbone.load_state_dict(adapters.backbone_state(model))
    plain = TalkingHeadPipeline(
        pipeline.autoencoder, backbone, pipeline.scheduler, pipeline.identity_encoder, pipeline.sync_network
    )
    plain.save_pretrained(str(place))


def load_released(run: RunFolder, client: str | None = None, device: str = "cpu") -> TalkingHeadPipeline:
    """The released model with its adapters acting: the shared one, and a client's own where a client is named, with
    what sounds mean for that client's lips and its own mouth.

    To generate, not to train: the adapters are merged into the weights, which is 1.4 times as fast. A pretrained
    pipeline has no adapters. Raises `RunError` where there is no model, or the client has no adapter.
    """
    pipeline = load_pipeline(str(run.pipeline))
    folders = {adapters.SHARED: run.shared_adapter} if run.has_shared_adapter() else {}
    if client is not None:
        folders[adapters.IDENTITY] = run.own_adapter(client)
    model: torch.nn.Module = pipeline.denoiser
    for name, folder in folders.items():
        model = _with_adapter(model, name, folder)
    if isinstance(model, PeftModel):
        adapters.use_adapters(model)
        model.merge_adapter()
    pipeline.register_modules(denoiser=model.eval())
    if client is not None:
        _join_own(bare_denoiser(model), folders[adapters.IDENTITY])
    return pipeline.to(device)


def _join_own(base: Any, folder: Path) -> None:
    """Gives a backbone what lies beside a client's adapter. Backbones of other kinds have no use for it."""
    encoder, mouth = (getattr(base, name, None) for name in ("speech_encoder", "open_mouth"))
    if isinstance(encoder, LipRegression):
        hearing = load_own_hearing(folder, len(base.lip_std), encoder.linear1.in_features)
        if hearing is not None:
            hearing.join(encoder)
    if mouth is not None:
        mouth.own = load_own_mouth(folder, len(base.lip_std))


def fill_released(model: PeftModel, run: RunFolder) -> None:
    """Fills the shared adapter of a model around the run's backbone; a run that shares its backbone has none."""
    if run.has_shared_adapter():
        adapters.load_adapter(model, adapters.SHARED, run.shared_adapter)


def _with_adapter(model: torch.nn.Module, name: str, folder: Path) -> PeftModel:
    """The model with one more adapter, of whatever rank the folder holds. Raises `RunError` when it does not fit.

    PEFT's own loading passes over weights that are missing, and lists every tensor of a wrong shape.
    """
    config, weights = _lora_config(folder), adapters.read_weights(folder)
    try:
        _check_scales(config, weights)
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, re.error) as error:
        # The configuration is a file like any other, and PEFT takes its word for everything.
        reason = " ".join(str(error).split())
        raise RunError(f"adapter {folder} does not fit this backbone: {reason}") from error
    adapters.load_adapter(model, name, folder)
    return model


def _lora_config(folder: Path) -> LoraConfig:
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise RunError(f"{folder} holds no PEFT adapter (no adapter_config.json)")
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("peft_type")
        if kind != PeftType.LORA:
            raise RunError(f"adapter {folder} is of type {kind}; a LoRA adapter of this project is needed")
        return LoraConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"adapter {folder} is damaged: adapter_config.json cannot be read ({error})") from error


def _check_scales(config: LoraConfig, weights: dict[str, torch.Tensor]) -> None:
    """Raises `ValueError` for ranks that would fill the memory before the shapes are compared, and for NaN."""
    held = max((len(value) for key, value in weights.items() if ".lora_A." in key), default=0)
    asked = max([config.r, *config.rank_pattern.values()])
    if asked > held:
        raise ValueError(f"adapter_config.json says rank {asked}, the weights have {held}")
    if not all(math.isfinite(alpha) for alpha in (config.lora_alpha, *config.alpha_pattern.values())):
        raise ValueError(f"lora_alpha is {config.lora_alpha}; it must be a finite number")
