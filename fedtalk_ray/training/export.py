"""A run's model in the formats that others load: a diffusers pipeline and a PEFT adapter."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

from fedtalk_ray.errors import RunError
from fedtalk_ray.model import adapters
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.embedded import find_model
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline
from fedtalk_ray.outputs import new_folder


def export_model(pipeline: TalkingHeadPipeline, model: PeftModel, shared: str, run: Path) -> None:
    """Writes RUN/pipeline with the backbone's weights and, where one is federated, RUN/adapters/shared."""
    backbone = TalkingHeadDenoiser.from_config(model.get_base_model().config)
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
    return run if (run / "model_index.json").is_file() else run / "pipeline"


def load_model(run: Path, identity: Path | None = None) -> TalkingHeadPipeline:
    """The pipeline of a run with its adapters acting: the shared one, and a client's own where a folder is given.

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
        adapters.use_adapters(model, list(folders))
    pipeline.register_modules(denoiser=model.eval())
    return pipeline


def _with_adapter(model: torch.nn.Module, name: str, folder: Path) -> PeftModel:
    """The model with one more adapter, of whatever rank the folder holds. Raises `RunError` when it does not fit.

    PEFT's own loading passes over weights that are missing, and lists every tensor of a wrong shape.
    """
    if not (folder / "adapter_config.json").is_file():
        raise RunError(f"{folder} holds no PEFT adapter (no adapter_config.json)")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"adapter {folder} is damaged: adapter_config.json cannot be read ({error})") from error
    if not isinstance(config, LoraConfig):
        raise RunError(f"adapter {folder} is of type {config.peft_type}; a LoRA adapter of this project is needed")
    try:
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"adapter {folder} does not fit this backbone: {reason}") from error
    adapters.load_adapter(model, name, folder)
    return model
