"""A run's model in the formats that others load: a diffusers pipeline and a PEFT adapter."""

import json
import math
import os
import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model

from fedtalk_ray.errors import RunError
from fedtalk_ray.model import adapters
from fedtalk_ray.model.embedded import find_model
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline
from fedtalk_ray.outputs import new_folder


def export_model(pipeline: TalkingHeadPipeline, model: PeftModel, shared: str, run: Path) -> None:
    """Writes RUN/pipeline with the backbone's weights and, where one is federated, RUN/adapters/shared."""
    base = model.get_base_model()
    backbone = type(base).from_config(base.config)
    backbone.load_state_dict(adapters.backbone_state(model))
    plain = TalkingHeadPipeline(
        pipeline.autoencoder, backbone, pipeline.scheduler, pipeline.identity_encoder, pipeline.sync_network
    )
    with new_folder(run / "pipeline", overwrite=True) as place:
        plain.save_pretrained(str(place))
    if shared == "adapter":
        with new_folder(run / "adapters", overwrite=True) as place:
            adapters.save_adapter(model, adapters.SHARED, place / adapters.SHARED)


def pipeline_folder(run: Path) -> Path:
    """Where the backbone lies: RUN/pipeline, or RUN itself where `fedtalk pretrain` wrote a pipeline there."""
    run = find_model(run)
    return run if os.path.isfile(run / "model_index.json") else run / "pipeline"


def load_model(run: Path, identity: Path | None = None) -> TalkingHeadPipeline:
    """The pipeline of a run with its adapters acting: the shared one, and a client's own where a folder is given.

    To generate, not to train: the adapters are merged into the weights, which is 1.4 times as fast.

    run: a run's folder, or a pretrained pipeline's, which has no adapters. Raises `RunError` where there is no model.
    """
    run = find_model(run)
    pipeline = load_pipeline(str(pipeline_folder(run)))
    folders = {}
    if (run / "adapters" / adapters.SHARED).exists():
        folders[adapters.SHARED] = run / "adapters" / adapters.SHARED
    if identity is not None:
        folders[adapters.IDENTITY] = identity
    model: torch.nn.Module = pipeline.denoiser
    for name, folder in folders.items():
        model = _with_adapter(model, name, folder)
    if isinstance(model, PeftModel):
        adapters.use_adapters(model)
        model.merge_adapter()
    pipeline.register_modules(denoiser=model.eval())
    return pipeline


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
