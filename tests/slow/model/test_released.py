"""What a run leaves loads by `from_pretrained` and `load_adapter` alone and generates the same frames."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer

from fedtalk_ray.model import adapters
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.released import load_released, release_model
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.training.local import LocalTrainer

KINDS = {"adapter": {}, "backbone": {"shared": "backbone", "aggregation": "plain"}}


def frames_of(pipeline: TalkingHeadPipeline) -> np.ndarray:
    rng = np.random.default_rng(0)
    face = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    audio = rng.normal(0, 0.1, 6400).astype(np.float32)
    return pipeline(face, audio, generator=torch.Generator().manual_seed(0)).frames


@pytest.fixture(params=KINDS)
def trained(request, make_pipeline, make_config, tmp_path: Path) -> tuple[Path, str, np.ndarray, np.ndarray]:
    """A run's folder, what is shared in it, and frames of the model in memory without and with a client's adapter."""
    pipeline = make_pipeline()
    trainer = LocalTrainer(pipeline, make_config(**KINDS[request.param]))
    pipeline.register_modules(denoiser=trainer.model)
    rng = np.random.default_rng(1)
    shared = adapters.to_vector(trainer.shared())
    shared = shared + rng.normal(0, 0.05, shared.shape).astype(np.float32)
    identity = rng.normal(0, 0.1, adapters.to_vector(trainer.identity()).shape).astype(np.float32)
    trainer.load(shared, None)
    trainer.model.eval()
    release_model(RunFolder(tmp_path), 3, pipeline, trainer.model, request.param)
    without = frames_of(pipeline)
    trainer.load(shared, identity)
    RunFolder(tmp_path).client("s1").keep_adapter(
        3, lambda place: adapters.save_adapter(trainer.model, adapters.IDENTITY, place)
    )
    return tmp_path, request.param, without, frames_of(pipeline)


def test_our_loader_gives_the_model_back_without_and_with_a_client(trained) -> None:
    run, _, without, with_client = trained
    assert (without != with_client).mean() > 0.05
    loaded, own = load_released(RunFolder(run)), load_released(RunFolder(run), "s1")
    assert (frames_of(loaded) == without).mean() > 0.999
    assert (frames_of(own) == with_client).mean() > 0.999
    for model in (loaded, own):
        assert all(layer.merged for layer in model.denoiser.modules() if isinstance(layer, LoraLayer))


def test_diffusers_and_peft_alone_give_it_back(trained) -> None:
    """Nothing of ours but the model classes is on the loading side."""
    run, kind, without, with_client = trained
    pipeline = TalkingHeadPipeline.from_pretrained(str(run / "pipeline"))
    identity = str(RunFolder(run).client("s1").newest_adapter)
    if kind == "adapter":
        model = peft.PeftModel.from_pretrained(
            pipeline.denoiser, str(run / "adapters" / "shared"), adapter_name="shared"
        )
        pipeline.register_modules(denoiser=model.eval())
        assert np.abs(frames_of(pipeline).astype(int) - without).max() <= 1
        model.load_adapter(identity, adapter_name="identity")
        model.base_model.set_adapter(["shared", "identity"])
    else:
        assert np.abs(frames_of(pipeline).astype(int) - without).max() <= 1
        model = peft.PeftModel.from_pretrained(pipeline.denoiser, identity)
    pipeline.register_modules(denoiser=model.eval())
    assert np.abs(frames_of(pipeline).astype(int) - with_client).max() <= 1
