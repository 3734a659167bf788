"""All phases of a training on real Ray actors: central training as a federation of one, with stops and deaths; nightly
also with an autoencoder that sees the reference, from clips to sharpness."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from fedtalk_ray.corpora.listing import list_synthetic
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.rounds import Federation, train
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import read_history
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.prepare import prepare
from fedtalk_ray.training.backbone import untrained_pipeline
from fedtalk_ray.training.pretrain import federation_of_one, pretrain

AUTOENCODERS = ["patch", "lower-face"]


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


@pytest.fixture(params=AUTOENCODERS)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, dict[str, bool]]:
    """Shards, the pipeline to go on from, and what `federation_of_one` is told of it."""
    if request.param == "patch":
        return request.getfixturevalue("shards"), request.getfixturevalue("pretrained"), {}
    request.getfixturevalue("ray_cluster")
    shards, start = tmp_path / "shards", tmp_path / "start"
    prepare("synthetic", list_synthetic(2, 4, seed=3), shards, size=96, autoencoder="lower-face", unseen=0)
    manifest = load_manifest(shards)
    assert manifest.shapes["latents"] == [32, 8, 8]
    torch.manual_seed(0)
    untrained_pipeline(manifest, widths=(16, 32), window=4).save_pretrained(str(start))
    return shards, start, {"patch": False, "sharp": True, "mouths": True}


class Stopped(Exception):
    """Stands for the end of the driver."""


@pytest.mark.nightly
def test_training_with_one_client_is_pretraining_to_the_bit(
    start: tuple[Path, Path, dict[str, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the run is stopped between phases and in one, and all slots are killed: those in their place have taught
    nothing of the phases before."""
    shards, begun, more = start
    pretrain(shards, tmp_path / "central", minutes=0, steps=3, start=str(begun), seed=4)
    run = RunFolder(tmp_path / "federated")
    config = federation_of_one(load_manifest(shards), shards, run.path, **more, steps=3, start=str(begun), seed=4)
    last = {phase.name: phase.last for phase in config.plan}
    stops, close = [last["speech"], last["faces"] + 1], Federation.close_round

    def disturbed(self: Federation, record: dict[str, Any], started: float) -> None:
        close(self, record, started)
        if record["round"] == last["faces"]:
            for slot in list(self._pool.ready):
                ray.kill(slot.actor)
        if record["round"] in stops:
            stops.remove(record["round"])
            raise Stopped

    monkeypatch.setattr(Federation, "close_round", disturbed)
    for goes_on in (False, True):
        with pytest.raises(Stopped):
            train(config, resume=goes_on)
    # The phase `faces` is over: its model can speak.
    assert run.released_round() == last["faces"]
    train(config, resume=True)
    central, federated, before = map(weights_of, (tmp_path / "central", run.pipeline, begun))
    assert central.keys() == federated.keys() >= before.keys()
    assert [name for name, value in central.items() if not np.array_equal(value, federated[name])] == []
    records = read_history(run.history_file)
    assert [record["phase"] for record in records] == [phase.name for phase in config.plan for _ in range(phase.count)]
    assert [record["round"] for record in records] == list(range(1, config.all_rounds + 1))
    assert {record["phase"] for record in records if "held_out_loss" in record} <= {"faces"}
    losses = {record["phase"]: set(record["loss"]) for record in records}
    assert losses["speech"] == {"lips", "motion"} and losses["units"] == set()
    taught = ["denoiser.speech_encoder", "denoiser.down_blocks", "denoiser.certainty", "denoiser.lip_axes"]
    if more:
        assert config.phases[-1] == "sharpness" and "mouths" in config.phases
        fixed = "autoencoder.encoder.weight"
        assert np.array_equal(before[fixed], central[fixed])
        taught = ["autoencoder.decoder.conv_out.weight"]
    else:
        assert central.keys() > before.keys(), "a sync network has been added"
        taught += ["autoencoder.decoder", "identity"]
    for part in taught:
        assert any(not np.array_equal(before[n], v) for n, v in central.items() if n.startswith(part)), part
