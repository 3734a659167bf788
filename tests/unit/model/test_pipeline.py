"""Generation: windows that cover every frame, guidance, seeds, and a pipeline on disk in diffusers' own format."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import RunError
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.model.pipeline import (
    TalkingHeadPipeline,
    fingerprint,
    load_pipeline,
    make_critic,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sound(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def face(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(("samples", "frames"), [(640, 2), (1281, 3), (6400, 10), (6401, 11)])
def test_a_frame_for_every_40_ms_begun(make_pipeline, samples: int, frames: int) -> None:
    output = make_pipeline()(face(), sound(samples), num_inference_steps=1, generator=seeded())
    assert output.frames.shape == (frames, 32, 32, 3) and output.frames.dtype == np.uint8
    assert output.latents.shape == (frames, 4, 8, 8)


def test_a_pipeline_saved_and_loaded_by_diffusers_alone_makes_the_same_frames(make_pipeline, tmp_path: Path) -> None:
    pipeline = make_pipeline(prediction_type="v_prediction")
    before = pipeline(face(), sound(6400), generator=seeded())
    pipeline.save_pretrained(str(tmp_path))
    assert set(json.loads((tmp_path / "model_index.json").read_text())) >= {"autoencoder", "denoiser", "scheduler"}
    loaded = TalkingHeadPipeline.from_pretrained(str(tmp_path))
    after = loaded(face(), sound(6400), generator=seeded())
    assert torch.equal(after.latents, before.latents) and (after.frames == before.frames).all()
    assert isinstance(loaded.identity_encoder, IdentityEncoder) and make_critic(loaded) is not None
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert fingerprint(loaded) == fingerprint(pipeline)


def test_a_damaged_or_missing_pipeline_is_one_clear_line(make_pipeline, tmp_path: Path) -> None:
    make_pipeline().save_pretrained(str(tmp_path))
    weights = tmp_path / "denoiser/diffusion_pytorch_model.safetensors"

    def refused(source: str, says: str) -> None:
        with pytest.raises(RunError, match=says) as caught:
            load_pipeline(source)
        assert source in str(caught.value) and "\n" not in str(caught.value)

    for damaged in (tmp_path / "model_index.json", weights, tmp_path / "denoiser/config.json"):
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:100])
        refused(str(tmp_path), ".")
        damaged.write_bytes(whole)
    weights.unlink()
    refused(str(tmp_path), ".")
    (tmp_path / "model_index.json").unlink()
    refused(str(tmp_path), r"holds no pipeline \(no model_index.json\)")
    refused("nobody/nothing", "neither a folder with a pipeline nor a hub id")
