"""All phases of a training on real Ray actors: central training as a federation of one, and stops between phases."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.numpy import load_file

from fedtalk_ray.corpora.listing import list_synthetic
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.rounds import Federation, train
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import read_history
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.prepare import prepare
from fedtalk_ray.training.backbone import untrained_pipeline
from fedtalk_ray.training.pretrain import federation_of_one, pretrain

Make = Callable[..., TrainConfig]

SMALL: dict[str, Any] = {
    "phases": ["units", "speech", "faces", "calibration"],
    "rounds": 2,
    "speech": {"rounds": 2, "steps": 2, "batch_size": 4},
    "local": {"steps": 2, "identity_steps": 1, "batch_size": 2, "score_windows": 2},
    # A slot's start takes longer than such a run.
    "slots": {"count": 1},
}


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a pipeline that some phase fixes or teaches."""
    pipeline = TalkingHeadPipeline.from_pretrained(str(folder))
    parts = {"denoiser": pipeline.denoiser, "autoencoder": pipeline.autoencoder}
    parts |= {"identity": pipeline.identity_encoder, "sync": pipeline.sync_network}
    return {
        f"{part}.{name}": value.numpy()
        for part, module in parts.items()
        if module is not None
        for name, value in module.state_dict().items()
    }


def test_training_with_one_client_is_pretraining_to_the_bit(shards: Path, pretrained: Path, tmp_path: Path) -> None:
    """Decoder, identity encoder, sync network, units, speech, denoiser and calibration: everything that is written."""
    pretrain(shards, tmp_path / "central", minutes=0, steps=3, start=str(pretrained), seed=4)
    config = federation_of_one(
        load_manifest(shards), shards, tmp_path / "federated", steps=3, start=str(pretrained), seed=4
    )
    train(config)
    central, federated = weights_of(tmp_path / "central"), weights_of(tmp_path / "federated" / "pipeline")
    before = weights_of(pretrained)
    assert central.keys() == federated.keys() > before.keys(), "a sync network has been added"
    unlike = [name for name, value in central.items() if not np.array_equal(value, federated[name])]
    assert unlike == []
    for part in ("denoiser.speech_encoder", "denoiser.down_blocks", "denoiser.certainty", "denoiser.lip_axes"):
        assert any(not np.array_equal(before[n], v) for n, v in federated.items() if n.startswith(part)), part
    for part in ("autoencoder.decoder", "identity"):
        assert any(not np.array_equal(before[n], v) for n, v in federated.items() if n.startswith(part)), part


def test_a_decoder_learns_to_be_sharp_in_rounds_as_it_does_centrally(ray_cluster: None, tmp_path: Path) -> None:
    """From clips to shards of lower faces, through all phases of an autoencoder that sees the reference, to the bit."""
    shards, start = tmp_path / "shards", tmp_path / "start"
    prepare("synthetic", list_synthetic(2, 4, seed=3), shards, size=96, autoencoder="lower-face", unseen=0)
    manifest = load_manifest(shards)
    assert manifest.shapes["latents"] == [32, 8, 8]
    torch.manual_seed(0)
    untrained_pipeline(manifest, widths=(16, 32), window=4).save_pretrained(str(start))
    pretrain(shards, tmp_path / "central", minutes=0, steps=2, start=str(start), seed=4)
    lower = {"patch": False, "sharp": True, "mouths": True}
    config = federation_of_one(manifest, shards, tmp_path / "federated", **lower, steps=2, start=str(start), seed=4)
    assert config.phases[-1] == "sharpness" and "mouths" in config.phases
    train(config)
    central, federated = weights_of(tmp_path / "central"), weights_of(tmp_path / "federated" / "pipeline")
    before = weights_of(start)
    assert [name for name, value in central.items() if not np.array_equal(value, federated[name])] == []
    learned, fixed = "autoencoder.decoder.conv_out.weight", "autoencoder.encoder.weight"
    assert not np.array_equal(before[learned], central[learned]) and np.array_equal(before[fixed], central[fixed])


@pytest.fixture(scope="module")
def finished(make_config: Make, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    config = make_config(tmp_path_factory.mktemp("phases") / "whole", **SMALL)
    train(config)
    return config


def test_every_round_says_its_phase_and_only_faces_have_a_held_out_loss(finished: TrainConfig) -> None:
    records = read_history(Path(finished.run) / "history.jsonl")
    assert [record["phase"] for record in records] == [
        "units", "speech", "speech", "faces", "faces", "calibration", "calibration", "calibration"
    ]  # fmt: skip
    assert [record["round"] for record in records] == list(range(1, 9))
    assert ["held_out_loss" in record for record in records] == [record["phase"] == "faces" for record in records]
    assert set(records[1]["loss"]) == {"lips", "motion"} and records[0]["loss"] == {}


def test_a_run_that_stopped_in_and_between_phases_ends_bit_identical(
    finished: TrainConfig, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After units, after speech, and while it calibrates."""
    run = tmp_path / "run"

    class Stopped(Exception):
        pass

    close = Federation.close_round

    def stop(self: Federation, record: dict[str, Any], started: float) -> None:
        close(self, record, started)
        if record["round"] in (1, 3, 6):
            raise Stopped

    monkeypatch.setattr(Federation, "close_round", stop)
    for goes_on in (False, True, True):
        with pytest.raises(Stopped):
            train(make_config(run, **SMALL), resume=goes_on)
    # The phase `faces` is over: its model can speak, though no sample was asked for so early.
    assert RunFolder(run).released_round() == 5 and not RunFolder(run).samples.exists()
    monkeypatch.setattr(Federation, "close_round", close)
    train(make_config(run, **SMALL), resume=True)
    assert {place.stem for place in RunFolder(run).samples.iterdir()} == {"round-00008"}
    whole = weights_of(Path(finished.run) / "pipeline")
    for name, value in weights_of(run / "pipeline").items():
        assert np.array_equal(value, whole[name]), name
    shared = "adapters/shared/adapter_model.safetensors"
    for name, value in load_file(run / shared).items():
        assert np.array_equal(value, load_file(Path(finished.run) / shared)[name]), name


def test_slots_that_come_when_phases_are_over_are_told_what_they_ended_with(
    finished: TrainConfig, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All slots are killed in the phase `faces`; those in their place have taught neither units nor speech."""
    run, close = tmp_path / "run", Federation.close_round

    def kill(self: Federation, record: dict[str, Any], started: float) -> None:
        close(self, record, started)
        if record["round"] == 4:
            for slot in list(self._pool.ready):
                ray.kill(slot.actor)

    monkeypatch.setattr(Federation, "close_round", kill)
    train(make_config(run, **SMALL))
    whole = weights_of(Path(finished.run) / "pipeline")
    for name, value in weights_of(run / "pipeline").items():
        assert np.array_equal(value, whole[name]), name


def test_nothing_central_is_needed_and_nothing_crosses_in_the_clear(make_config: Make, tmp_path: Path) -> None:
    """From random weights under secure aggregation: statistics too are seen as a sum alone."""
    config = make_config(
        tmp_path / "run",
        **SMALL
        | {"pretrained": None, "shared": "backbone", "aggregation": "secure", "cohort": {"size": 3}, "slots": {}},
        privacy={"insecure_min_survivors": 3},
        server={},
    )
    train(config)
    records = read_history(tmp_path / "run" / "history.jsonl")
    assert all(record["survivors"] == 3 and "clients" not in record and "loss" not in record for record in records)
    made = weights_of(tmp_path / "run" / "pipeline")
    assert made["denoiser.residual_std"].max() < 1 and made["denoiser.lip_axes"].any()
    assert not np.array_equal(made["denoiser.certainty"], np.ones_like(made["denoiser.certainty"]))
    shutil.rmtree(tmp_path / "run")
