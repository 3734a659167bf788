"""The phase `sharpness`: a decoder that is shown means becomes sharp, an adversary that learns beside it, and both
alone are summed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.model.adversary import Adversary
from fedtalk_ray.model.lower_face import LowerFaceAutoencoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.recipe import SharpnessConfig
from fedtalk_ray.shards.people import People
from fedtalk_ray.slot_settings import StreamConfig
from fedtalk_ray.training.backbone import untrained_pipeline
from fedtalk_ray.training.phases.sharpness import sharpness_phase

SIDE = 48


@pytest.fixture(scope="module")
def people(make_shards: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> People:
    folder: Path = tmp_path_factory.mktemp("sharpness") / "shards"
    return People(folder, make_shards(folder, {"s1": [30] * 3, "s2": [30] * 3}, SIDE, encoder="lower-face"))


def new_pipeline(people: People) -> TalkingHeadPipeline:
    torch.manual_seed(5)
    pipeline = untrained_pipeline(people.manifest, widths=(16, 32), window=4)
    pipeline.register_modules(autoencoder=LowerFaceAutoencoder(widths=(8, 16)).eval())
    return pipeline


def test_decoder_and_adversary_are_what_is_summed(people: People, make_task) -> None:
    torch.manual_seed(0)
    pipeline = new_pipeline(people)
    phase, frozen = sharpness_phase(pipeline, SharpnessConfig(steps=1, batch_size=2), StreamConfig(), 0.9), {}
    for part in ("autoencoder", "denoiser"):
        frozen[part] = {name: value.clone() for name, value in getattr(pipeline, part).state_dict().items()}
    shared = phase.initial()
    decoder = sum(value.numel() for value in pipeline.autoencoder.decoder.parameters())
    assert len(shared) == decoder + sum(value.numel() for value in Adversary().parameters())
    update = phase.fit(make_task(people, shared)).update
    # By name the adversary comes first. Before its word counts the decoder learns from the true pictures.
    assert update.dtype == np.float32 and update[:-decoder].any() and update[-decoder:].any()
    phase.finish(shared + update)
    for part, before in frozen.items():
        after = getattr(pipeline, part).state_dict()
        assert {name for name in before if not torch.equal(before[name], after[name])} == {
            name for name in before if part == "autoencoder" and name.startswith("decoder.conv_out")
        }
    assert not pipeline.autoencoder.training
    known = phase.frozen()
    pipeline.denoiser.conv_in.weight.data += 1
    assert phase.frozen() != known, "the loss goes through it"
