"""B2: what computes on a GPU where there is one. Here there is none: a device without values stands in for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.evaluation import evaluate, window_figures
from fedtalk_ray.generation import generate
from fedtalk_ray.model.device import has_bf16, pick_device
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.sync import SyncNetwork
from fedtalk_ray.recipe import DecoderConfig, IdentityConfig, SpeechConfig, SyncConfig
from fedtalk_ray.report import videos
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.shards.people import People
from fedtalk_ray.slot_settings import StreamConfig
from fedtalk_ray.training import personalize
from fedtalk_ray.training.backbone import untrained_pipeline
from fedtalk_ray.training.phases import sync
from fedtalk_ray.training.phases.decoder import decoder_phase
from fedtalk_ray.training.phases.identity import identity_phase
from fedtalk_ray.training.phases.speech import speech_phase


class Asked(Exception):
    """Which device a model was sent to."""


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert (pick_device(), pick_device("cpu"), pick_device("cuda:1")) == (expected, "cpu", "cuda:1")


def test_a_cpu_has_bf16_where_torch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, expected in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda said=said: said, raising=False)
        assert has_bf16("cpu") is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_bf16("cpu"), "an older torch does not say"


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
def known(tmp_path_factory: pytest.TempPathFactory, make_shards: Callable) -> People:
    folder = tmp_path_factory.mktemp("devices") / "shards"
    return People(folder, make_shards(folder, {"ann": [30, 30], "bob": [30, 30]}))


@pytest.fixture
def pieces(known: People) -> list[Piece]:
    return [piece for who in ("ann", "bob") for piece in known.pieces(who, "train")]


@pytest.fixture
def pipeline(known: People) -> TalkingHeadPipeline:
    made = untrained_pipeline(known.manifest, widths=(16, 32), window=4)
    made.denoiser.lip_axes.fill_(1)  # as the phase `units` leaves a denoiser
    return made


@pytest.mark.parametrize("part", ["decoder", "identity", "sync", "speech"])
def test_every_phase_moves_its_batches_to_its_device(
    part: str,
    pipeline: TalkingHeadPipeline,
    pieces: list[Piece],
    known: People,
    make_task: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On "meta" a tensor that stayed on the CPU is an error. What ends each is the first thing that needs values, after
    all of a batch has been used: to choose pairs, or to say how large the loss is."""
    encoder, network = IdentityEncoder(), SyncNetwork(*pieces[0].latents.shape[1:3], *pieces[0].speech.shape[1:])
    phases: dict[str, Callable[[str], Any]] = {
        "decoder": lambda device: decoder_phase(pipeline.autoencoder, DecoderConfig(), device),
        "identity": lambda device: identity_phase(encoder, IdentityConfig(), device),
        "sync": lambda device: sync.sync_phase(network, pipeline.autoencoder, SyncConfig(), device),
        "speech": lambda device: speech_phase(pipeline.denoiser, SpeechConfig(), StreamConfig(), 5.0, device),
    }
    shared = phases[part]("cpu").initial()
    task = make_task(known, shared, client="ann") if part == "speech" else make_task(pieces, shared)
    if part == "sync":  # it varies its clips in the network's units, whose values are not there
        monkeypatch.setattr(torch.Tensor, "cpu", lambda values: torch.ones(values.shape))
    needs_values = {"identity": "nonzero"}
    with pytest.raises(RuntimeError, match=needs_values.get(part, "cannot be called on meta tensors")):
        phases[part]("meta").fit(task)


def test_clips_are_varied_on_the_device_of_the_autoencoder(
    pipeline: TalkingHeadPipeline, pieces: list[Piece], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the phase `sync` it lies where the whole pipeline does."""
    sent = []

    def encode(autoencoder: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        sent.append(pixels.device.type)
        return torch.zeros(len(pixels), 16, 8, 8)

    monkeypatch.setattr(sync, "encode_pixels", encode)
    sync.vary_clips(pieces, pipeline.autoencoder.to("meta"), np.random.default_rng(0))
    assert set(sent) == {"meta"}
