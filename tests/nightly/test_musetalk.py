"""MuseTalk's folder, with small random weights, through everything that a user does with it."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from peft import PeftModel
from PIL import Image
from scipy.io import wavfile

from fedtalk_ray.commands.cli import main
from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.evaluation.evaluate import evaluate_run
from fedtalk_ray.media.framing import MUSETALK
from fedtalk_ray.media.portrait import locate_face
from fedtalk_ray.rounds import train
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import read_history
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import People
from fedtalk_ray.training.personalize import personalize
from tests.musetalk_folder import PIXELS, write_musetalk


def fedtalk(*command: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in command])
    assert not ended.value.code


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_musetalk(tmp_path_factory.mktemp("musetalk") / "models")


@pytest.fixture(scope="module")
def people(ray_cluster: None, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawn clients and one unseen person, as `fedtalk prepare --backbone` writes them."""
    out = tmp_path_factory.mktemp("data") / "people"
    drawn = ["--corpus", "synthetic", "--identities", "4", "--clips", "2", "--unseen", "1"]
    fedtalk("prepare", *drawn, "--backbone", models, "--out", out)
    return out


@pytest.fixture(scope="module")
def run(people: Path, models: Path, make_config: Callable[..., TrainConfig], tmp_path_factory) -> RunFolder:
    """Two secure rounds of three clients."""
    local = {"steps": 2, "identity_steps": 0, "batch_size": 1, "learning_rate": 1e-3, "vary": False}
    config = make_config(
        tmp_path_factory.mktemp("runs") / "run",
        shards=str(people),
        pretrained=str(models),
        phases=["faces"],
        aggregation="secure",
        privacy={"insecure_min_survivors": 2, "samples_cap": 400, "clip_norm": 1.0},
        cohort={"size": 3},
        rounds=2,
        local=local | {"loss": {"mouth_weight": 1.0, "tdc": 0.0}},
        adapter={"rank": 2, "identity_rank": 2},
        evaluation={"every": 2, "sample_every": 2},
    )
    return RunFolder(train(config))


def test_shards_hold_its_crops_latents_and_tokens(people: Path) -> None:
    manifest = load_manifest(people)
    assert (manifest.frame_size, manifest.framing) == (PIXELS, "musetalk")
    assert manifest.shapes["latents"] == [8, 8, 8] and manifest.shapes["speech"] == [10, 1920]
    who = manifest.clients()[0]
    piece = next(People(people, manifest).pieces(who, "train"))
    # Cheeks lie at the edges, the third point of the bridge in the middle but for ten pixels of the chin's.
    x, y = piece.landmarks[..., 0], piece.landmarks[..., 1]
    assert abs(np.median(x.min(1))) < 0.02 and abs(np.median(x.max(1)) - 1) < 0.02
    height = piece.places[:, 1, 1]
    np.testing.assert_allclose(np.median(y[:, 29] - (0.5 - 5 / height)), 0, atol=0.02)
    np.testing.assert_allclose(np.median(y.max(1) - (1 - 10 / height)), 0, atol=0.02)


def test_three_clients_teach_it_under_secure_aggregation(run: RunFolder, models: Path) -> None:
    history = read_history(run.history_file)
    assert [record["survivors"] for record in history] == [3, 3]
    assert all(record["update_norm"] > 0 for record in history)
    # The adapter is one that PEFT lays over the stock U-Net.
    from diffusers import UNet2DConditionModel

    stock = UNet2DConditionModel.from_pretrained(run.pipeline / "denoiser")
    adapted = PeftModel.from_pretrained(stock, run.shared_adapter)
    carrying = [name for name, _ in adapted.named_parameters() if ".lora_B." in name]
    assert any("attn2.to_k" in name for name in carrying) and any("conv1" in name for name in carrying)
    assert any(bool(value.any()) for name, value in adapted.named_parameters() if ".lora_B." in name)


def test_a_client_learns_her_own_face_and_is_measured_with_it(run: RunFolder, people: Path) -> None:
    who = load_manifest(people).clients()[0]
    learned = personalize(run.path, who, 2)
    assert (learned.folder / "adapter_model.safetensors").is_file()
    found = evaluate_run(run.path, people, "held-out", limit=1)
    assert found["identity_adapters"] == 1
    groups = found["groups"]
    for rows in groups.values():
        # Copying the first frame agrees with it; a random model is far from both.
        assert rows["copy"]["psnr"] > rows["generated"]["psnr"]
        assert all(np.isfinite(value) for row in rows.values() for value in row.values() if value is not None)
    assert {"generated", "other sound", "dubbed", "copy", "autoencoder"} <= set(groups["unseen"])


def test_it_speaks_in_a_photo_and_over_every_frame_of_a_video(run: RunFolder, tmp_path: Path) -> None:
    """Of the picture all but the lower half of the face's box stays as it was."""
    head = render_clip(5, 0, size=110, seconds=0.04).video.frames[0]
    scene = np.full((200, 260, 3), 128, np.uint8)
    scene[40:150, 60:170] = head
    photo, sound, clip = tmp_path / "photo.png", tmp_path / "sound.wav", tmp_path / "clip.mp4"
    Image.fromarray(scene).save(photo)
    wavfile.write(sound, 16_000, (3000 * np.random.default_rng(0).normal(size=8000)).astype(np.int16))
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("h264", rate=30, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 200, 260, "yuv444p"
        for _ in range(15):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene, format="rgb24")))
        container.mux(stream.encode())
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
