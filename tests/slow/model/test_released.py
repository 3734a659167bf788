"""What a run leaves loads by `from_pretrained` and `load_adapter` alone and generates the same frames."""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from diffusers import DDIMScheduler
from peft.tuners.lora import LoraLayer

from fedtalk_ray.model import adapters
from fedtalk_ray.model.autoencoder import PatchAutoencoder
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline
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


def test_every_part_of_the_exported_pipeline_loads_by_itself(trained) -> None:
    run, _, _, _ = trained
    parts = {
        "autoencoder": PatchAutoencoder,
        "denoiser": TalkingHeadDenoiser,
        "scheduler": DDIMScheduler,
        "identity_encoder": IdentityEncoder,
    }
    for name, kind in parts.items():
        assert isinstance(kind.from_pretrained(str(run / "pipeline" / name)), kind)


def test_the_exported_backbone_carries_no_trace_of_adapters(trained, make_denoiser) -> None:
    run, kind, _, _ = trained
    backbone = TalkingHeadDenoiser.from_pretrained(str(run / "pipeline" / "denoiser"))
    original = make_denoiser().state_dict()
    assert list(backbone.state_dict()) == list(original)
    same = [torch.equal(backbone.state_dict()[name], value) for name, value in original.items()]
    assert all(same) if kind == "adapter" else not all(same)
    assert (run / "adapters").exists() == (kind == "adapter")


def test_exporting_again_replaces_what_was_there(trained, make_pipeline, make_config) -> None:
    run, kind, without, _ = trained
    pipeline = make_pipeline()
    trainer = LocalTrainer(pipeline, make_config(**KINDS[kind]))
    release_model(RunFolder(run), 3, pipeline, trainer.model, kind)
    after = frames_of(load_released(RunFolder(run)))
    assert (after == frames_of(make_pipeline())).mean() > 0.999 and (after != without).mean() > 0.05
    assert not list(run.rglob(".*")), "nothing half written stays"


def test_what_an_older_pipeline_has_learned_to_see_since_is_released_too(make_pipeline, make_config, tmp_path) -> None:
    """Its file says nothing of it, as one of an older version does."""
    make_pipeline().save_pretrained(str(tmp_path / "before"))
    file = tmp_path / "before/denoiser/config.json"
    settings = json.loads(file.read_text())
    del settings["reference_lips"]
    file.write_text(json.dumps(settings))
    pipeline = load_pipeline(str(tmp_path / "before"))
    pipeline.denoiser.see_reference_lips()
    torch.nn.init.normal_(pipeline.denoiser.reference_embedding.weight)
    weight = pipeline.denoiser.reference_embedding.weight.clone()
    trainer = LocalTrainer(pipeline, make_config(**KINDS["backbone"]))
    release_model(RunFolder(tmp_path / "run"), 1, pipeline, trainer.model, "backbone")
    assert torch.equal(load_released(RunFolder(tmp_path / "run")).denoiser.reference_embedding.weight, weight)
