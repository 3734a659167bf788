"""MuseTalk's folder, with small random weights, through everything that a user does with it."""

from pathlib import Path

import av
import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from peft import PeftModel
from PIL import Image
from scipy.io import wavfile

from fedtalk_ray.commands.cli import main
from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.evaluation.evaluate import evaluate_run
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.framing import MUSETALK
from fedtalk_ray.media.portrait import locate_face
from fedtalk_ray.rounds import train
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import read_history
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import People
from fedtalk_ray.training.personalize import personalize
from tests.musetalk_folder import PIXELS, write_musetalk
from tests.ray.conftest import Make


def fedtalk(*command: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in command])
    assert not ended.value.code


@pytest.fixture(scope="module")
def run(ray_cluster: None, make_config: Make, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two secure rounds of three drawn clients, whose clips `fedtalk prepare --backbone` prepared."""
    folder = tmp_path_factory.mktemp("musetalk")
    models, people = write_musetalk(folder / "models"), folder / "people"
    drawn = ["--corpus", "synthetic", "--identities", "4", "--clips", "2", "--unseen", "1"]
    fedtalk("prepare", *drawn, "--backbone", models, "--out", people)
    local = {"steps": 2, "identity_steps": 0, "batch_size": 1, "learning_rate": 1e-3, "vary": False}
    config = make_config(
        folder / "run",
        shards=str(people),
        pretrained=str(models),
        aggregation="secure",
        privacy={"insecure_min_survivors": 2, "samples_cap": 400, "clip_norm": 1.0},
        cohort={"size": 3},
        rounds=2,
        local=local | {"loss": {"mouth_weight": 1.0, "tdc": 0.0}},
        adapter={"rank": 2, "identity_rank": 2},
        evaluation={"every": 2, "sample_every": 2},
        server={},
    )
    return RunFolder(train(config))


def test_shards_hold_its_crops_and_three_clients_teach_it(run: RunFolder) -> None:
    people = Path(run.config().shards)
    manifest = load_manifest(people)
    assert (manifest.frame_size, manifest.framing) == (PIXELS, "musetalk")
    assert manifest.shapes["latents"] == [8, 8, 8] and manifest.shapes["speech"] == [10, 1920]
    who = manifest.clients()[0]
    piece = next(People(people, manifest).pieces(who, "train"))
    # Cheeks lie at the edges, the third point of the bridge in the middle but for ten pixels of the chin's.
    (x, y), height = np.moveaxis(piece.landmarks, -1, 0), piece.places[:, 1, 1]
    for found, wanted in ((x.min(1), 0), (x.max(1), 1), (y[:, 29], 0.5 - 5 / height), (y.max(1), 1 - 10 / height)):
        assert abs(np.median(found - wanted)) < 0.02
    history = read_history(run.history_file)
    assert [record["survivors"] for record in history] == [3, 3]
    assert all(record["update_norm"] > 0 for record in history)
    # The adapter is one that PEFT lays over the stock U-Net.
    stock = UNet2DConditionModel.from_pretrained(run.pipeline / "denoiser")
    adapted = PeftModel.from_pretrained(stock, run.shared_adapter)
    carrying = {name: value for name, value in adapted.named_parameters() if ".lora_B." in name}
    assert any("attn2.to_k" in name for name in carrying) and any("conv1" in name for name in carrying)
    assert any(bool(value.any()) for value in carrying.values())
    # A client learns her own face, and is measured with it.
    learned = personalize(run.path, who, 2)
    assert (learned.folder / "adapter_model.safetensors").is_file()
    found = evaluate_run(run.path, people, "held-out", limit=1)
    assert found["identity_adapters"] == 1
    for rows in found["groups"].values():
        # Copying the first frame agrees with it; a random model is far from both.
        assert rows["copy"]["psnr"] > rows["generated"]["psnr"]
        assert all(np.isfinite(value) for row in rows.values() for value in row.values() if value is not None)
    assert {"generated", "other sound", "dubbed", "copy", "autoencoder"} <= set(found["groups"]["unseen"])


def test_it_speaks_in_a_photo_and_over_every_frame_of_a_video(run: RunFolder, tmp_path: Path) -> None:
    """Of the picture all but the lower half of the face's box stays as it was."""
    head = render_clip(5, 0, size=110, seconds=0.04).video.frames[0]
    scene = np.full((200, 260, 3), 128, np.uint8)
    scene[40:150, 60:170] = head
    photo, sound, clip = tmp_path / "photo.png", tmp_path / "sound.wav", tmp_path / "clip.mp4"
    Image.fromarray(scene).save(photo)
    wavfile.write(sound, 16_000, (3000 * np.random.default_rng(0).normal(size=8000)).astype(np.int16))
    write_video(clip, np.repeat(scene[None], 15, axis=0), None, fps=30)
    mask = MUSETALK.mask(256)
    (transform,) = MUSETALK.transforms(locate_face(scene).landmarks[None])
    for reference, rate in ((photo, 25), (clip, 30)):
        out = tmp_path / f"{reference.stem}-spoken.mp4"
        command = ("generate", "--run", run.path, "--reference", reference, "--audio", sound, "--out", out)
        fedtalk(*command, "--hold-still", "--no-mark")
        with av.open(str(out)) as container:
            assert container.streams.video[0].average_rate == rate
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        assert frames.shape == (rate // 2 + rate % 2, 200, 260, 3)
        y, x = np.mgrid[:200, :260] + 0.5
        place = ((np.stack([x, y], -1) - transform[:, 2]) / (transform[0, 0], transform[1, 1]) * 256).astype(int)
        within = ((place >= 0) & (place < 256)).all(-1)
        shown = within & (mask[place[..., 1].clip(0, 255), place[..., 0].clip(0, 255)] > 0.9)
        beyond = ~within | (place[..., 1] < 110)
        change = np.abs(frames.astype(int) - scene).mean(-1)
        assert change[:, beyond].mean() < 4 and change[:, shown].mean() > 10
