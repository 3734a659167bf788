"""A run's model in the formats that others load: a diffusers pipeline and a PEFT adapter."""

from pathlib import Path

import torch
from peft import PeftModel

from fedtalk_ray.model import adapters
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline
from fedtalk_ray.outputs import new_folder


def export_model(pipeline: TalkingHeadPipeline, model: PeftModel, shared: str, run: Path) -> None:
    """Writes RUN/pipeline with the backbone's weights and, where one is federated, RUN/adapters/shared."""
    backbone = TalkingHeadDenoiser.from_config(model.get_base_model().config)
    backbone.load_state_dict(adapters.backbone_state(model))
    plain = TalkingHeadPipeline(pipeline.autoencoder, backbone, pipeline.scheduler, pipeline.identity_encoder)
    with new_folder(run / "pipeline", overwrite=True) as place:
        plain.save_pretrained(str(place))
    if shared == "adapter":
        with new_folder(run / "adapters", overwrite=True) as place:
            adapters.save_adapter(model, adapters.SHARED, place / adapters.SHARED)


def load_model(run: Path, identity: Path | None = None) -> TalkingHeadPipeline:
    """The pipeline of a run with its adapters acting: the shared one, and a client's own where a folder is given."""
    pipeline = load_pipeline(str(run / "pipeline"))
    folders = {adapters.SHARED: run / "adapters" / adapters.SHARED}
    if identity is not None:
        folders[adapters.IDENTITY] = identity
    model: torch.nn.Module = pipeline.denoiser
    present = [name for name, folder in folders.items() if (folder / "adapter_config.json").is_file()]
    for name in present:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folders[name]), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(folders[name]), adapter_name=name)
    if isinstance(model, PeftModel):
        adapters.use_adapters(model, present)
    pipeline.register_modules(denoiser=model.eval())
    return pipeline
