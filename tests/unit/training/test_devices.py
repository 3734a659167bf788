"""B2: what computes on a GPU where there is one. Here there is none: a device without values stands in for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.evaluation import evaluate, window_figures
from fedtalk_ray.generation import generate
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.sync import SyncNetwork
from fedtalk_ray.report import videos
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.shards.people import People
from fedtalk_ray.training import personalize
from fedtalk_ray.training.backbone import untrained_pipeline
from fedtalk_ray.training.train_decoder import train_decoder
from fedtalk_ray.training.train_identity import train_identity
from fedtalk_ray.training.train_speech_motion import train_speech_motion
from fedtalk_ray.training.train_sync import train_sync


class Asked(Exception):
    """Which device a model was sent to."""


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert (pick_device(), pick_device("cpu"), pick_device("cuda:1")) == (expected, "cpu", "cuda:1")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has a GPU; the first model that goes there ends the command."""

    def sent(self: TalkingHeadPipeline, device: str) -> None:
        raise Asked(device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(TalkingHeadPipeline, "to", sent)


def test_commands_compute_on_the_gpu_that_was_reserved_for_them(
    gpu: None, make_run: Callable[..., Path], plain_record: Callable, report_shards: Path, tmp_path: Path
) -> None:
    run = make_run([plain_record(1)], aggregation="plain")
    shards, clip = str(report_shards), "zoe/clip0"
    commands: list[Callable[[], Any]] = [
        lambda: generate.generate(run, clip, clip, tmp_path / "o.mp4", "anna", shards),
        lambda: evaluate.evaluate_run(run, shards, "test"),
        lambda: window_figures.window_figures(run, shards),
        lambda: personalize.personalize(run, "anna", 1),
        lambda: videos.make_videos(videos.RunFolder(run), people(report_shards), "", None),
    ]
    for command in commands:
        with pytest.raises(Asked, match="cuda"):
            command()


def people(shards: Path) -> People:
    from fedtalk_ray.shards.format import load_manifest

    return People(shards, load_manifest(shards))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory, make_shards: Callable) -> tuple[TalkingHeadPipeline, list[Piece]]:
    folder = tmp_path_factory.mktemp("devices") / "shards"
    known = People(folder, make_shards(folder, {"ann": [30, 30], "bob": [30, 30]}))
    pipeline = untrained_pipeline(known.manifest, widths=(16, 32), window=4)
    return pipeline, [piece for who in ("ann", "bob") for piece in known.pieces(who, "train")]


@pytest.mark.parametrize("part", ["decoder", "identity", "sync", "speech"])
def test_every_part_of_pretraining_moves_its_batches_to_its_device(part: str, pieces: tuple) -> None:
    """On "meta" a tensor that stayed on the CPU is an error. What ends each is the first thing that needs values, after
    all of a batch has been used: to choose pairs, or to come back to the CPU."""
    pipeline, clips = pieces
    rng, once, device = np.random.default_rng(0), iter([0.0]), "meta"
    channels, cells, _ = clips[0].latents.shape[1:]
    lips = [np.zeros((len(piece.frames), pipeline.denoiser.config.lip_numbers), np.float32) for piece in clips]
    train: dict[str, Callable[[], None]] = {
        "decoder": lambda: train_decoder(pipeline.autoencoder, clips, once, rng, device),
        "identity": lambda: train_identity(IdentityEncoder(), clips, once, rng, device),
        "sync": lambda: train_sync(SyncNetwork(channels, cells, *clips[0].speech.shape[1:]), clips, once, rng, device),
        "speech": lambda: train_speech_motion(pipeline.denoiser, clips, lips, once, 5.0, rng, device),
    }
    needs_values = {"identity": "nonzero", "sync": "cannot be called on meta tensors"}
    with pytest.raises(RuntimeError, match=needs_values.get(part, "Cannot copy out of meta tensor")):
        train[part]()
