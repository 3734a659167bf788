"""`fedtalk generate` on whatever people have: each case works, or says in one line why not and leaves nothing."""

import functools
import itertools
import json
import math
import os
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.io import wavfile

from fedtalk_ray.commands.cli import main
from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.generation.generate import enlarge, find_face, speak_into, write_bare
from fedtalk_ray.generation.scene import Stopped
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.video import FPS, SAMPLE_RATE, read_audio, read_video
from fedtalk_ray.model import adapters
from fedtalk_ray.model.released import load_released, open_model
from fedtalk_ray.model.sampling import USUAL, Sampling
from fedtalk_ray.runs.folder import RunFolder
from tests.served import own_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@functools.cache
def face(side: int, identity: int = 2) -> np.ndarray:
    return render_clip(identity, 0, size=side, seconds=0.04).video.frames[0]


def photo(*faces: tuple[int, int, int], height: int = 241, width: int = 303) -> np.ndarray:
    """A grey picture with drawn faces, each (side, x, y)."""
    picture = np.full((height, width, 3), 128, np.uint8)
    for number, (side, x, y) in enumerate(faces or [(140, 70, 50)]):
        picture[y : y + side, x : x + side] = face(side, 2 + number)
    return picture


def voice(seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Noise that comes and goes; int16."""
    time = np.arange(round(seconds * rate)) / rate
    return (np.random.default_rng(0).normal(0, 3000, len(time)) * np.abs(np.sin(12 * time))).astype(np.int16)


@pytest.fixture(scope="module")
def run(make_pipeline, tmp_path_factory) -> Path:
    """A run with a client of its own rank."""
    folder = tmp_path_factory.mktemp("made") / "run"
    pipeline = make_pipeline()
    pipeline.save_pretrained(str(folder / "pipeline"))
    own_adapter(folder, "anna", adapters.with_adapters(pipeline.denoiser, None, 1.0, 3))
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    Image.fromarray(photo()).save(tmp_path / "in" / "face.png")
    wavfile.write(tmp_path / "in" / "voice.wav", SAMPLE_RATE, voice(0.3))
    return tmp_path / "in"


@pytest.fixture
def command(run: Path, files: Path, tmp_path: Path, capsys) -> Callable[..., tuple[int, list[str]]]:
    """Runs `fedtalk generate --crop` and returns its status and its lines on stderr; names lie in `files`."""

    def call(*more: str, reference="face.png", audio="voice.wav", out=tmp_path / "out" / "o.mp4", run=run):
        given = ["--crop", "--run", run, "--reference", files / reference, "--audio", files / audio, "--out", out]
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
            warnings.simplefilter("error", UserWarning)  # it would be a line on stderr
            main(["generate", *map(str, given), *more])
        return stopped.value.code, capsys.readouterr().err.splitlines()

    return call


@pytest.fixture
def works(command, tmp_path: Path) -> Callable[..., tuple[np.ndarray, list[str]]]:
    """The video's frames, and what was noted on stderr."""

    def call(*more: str, **given) -> tuple[np.ndarray, list[str]]:
        status, lines = command(*more, **given)
        assert status == 0, lines
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["o.mp4"]
        video = read_video(tmp_path / "out" / "o.mp4")
        assert abs(len(video.audio) - len(video.frames) * 640) < 2048, "one AAC frame of padding at each end"
        return video.frames, lines

    return call


@pytest.fixture
def refused(command, tmp_path: Path) -> Callable[..., str]:
    """The one line, without the command's name and the folder's."""

    def call(*more: str, **given) -> str:
        before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        status, lines = command(*more, **given)
        assert status == 1 and len(lines) == 1 and lines[0].startswith("fedtalk: "), lines
        assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
        return lines[0].removeprefix("fedtalk: ").replace(f"{tmp_path}/in/", "")

    return call


SOUNDS = {
    "one sample": (SAMPLE_RATE, voice(1)[:1]),
    "stereo 48 kHz": (48_000, np.stack([voice(0.7, 48_000), voice(0.7, 48_000) // 3], axis=1)),
    "8 kHz": (8000, voice(0.5, 8000)),
}


@pytest.mark.parametrize("kind", SOUNDS)
def test_a_sound_of_any_kind_gives_a_video_as_long(works, files: Path, kind: str) -> None:
    rate, samples = SOUNDS[kind]
    wavfile.write(files / "a.wav", rate, samples)
    frames, notes = works(audio="a.wav")
    assert frames.shape == (max(2, math.ceil(len(samples) / rate * FPS)), 128, 128, 3) and not notes


def test_seed_steps_and_guidance_are_the_users(works, run: Path, files: Path) -> None:
    model, sound = load_released(open_model(run)), read_audio(files / "voice.wav")
    aligned = find_face(str(files / "face.png"), model.frame_size(), None).crop
    chosen = ((), ("--seed", "7"), ("--steps", "1"), ("--guidance", "3"))
    seeds, samplings = (0, 7, 0, 0), (USUAL, USUAL, Sampling(steps=1), Sampling(guidance=3))
    made = [works(*options)[0] for options in chosen]
    assert all((one != other).any() for one, other in itertools.combinations(made, 2))
    for frames, seed, sampling in zip(made, seeds, samplings, strict=True):
        generator = torch.Generator().manual_seed(seed)
        true = model(aligned, sound, sampling.steps, sampling.guidance, generator).frames
        assert np.abs(frames.astype(int) - enlarge(true)).mean() < 6, "but for what the video's coding loses"


def test_a_sound_that_cannot_be_used_is_refused(refused, files: Path) -> None:
    wavfile.write(files / "a.wav", SAMPLE_RATE, voice(1)[:0])
    assert refused(audio="a.wav") == "audio a.wav: no sound could be decoded"
    (files / "a.wav").write_text("this is text\n" * 50)
    assert refused(audio="a.wav").startswith("audio a.wav: cannot be decoded (no picture, sound or video of a known")
    assert refused("--guidance", "inf") == "guidance is inf; it must be a number, 0 or more"


def test_what_is_no_file_is_refused_by_its_role(refused, files: Path) -> None:
    (files / "folder").mkdir()
    for role in ("reference", "audio"):
        assert refused(**{role: "folder"}) == f"{role} folder is a folder; give a file"
        assert refused(**{role: "none.wav"}).startswith(f"{role} none.wav does not exist; give a file, or CLIENT/CLIP")
        assert refused(**{role: "/dev/null"}) == f"{role} /dev/null is a device or pipe; give a file"
    assert refused(audio="face.png") == "audio face.png: holds no sound"
    assert refused(reference="voice.wav") == "reference voice.wav: holds no picture"


CLEAR_ABOVE = np.where(np.arange(241) < 30, 0, 255).astype(np.uint8)[:, None, None].repeat(303, 1)
TURNED = Image.Exif()
TURNED[274] = 6  # to be turned clockwise for viewing
PICTURES: dict[str, Callable[[Path], object]] = {
    "alpha.png": lambda path: Image.fromarray(np.concatenate([photo(), CLEAR_ABOVE], axis=-1)).save(path),
    "turned.jpg": lambda path: Image.fromarray(np.rot90(photo())).save(path, exif=TURNED),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_of_any_kind_shows_its_face(works, files: Path, run: Path, name: str) -> None:
    PICTURES[name](files / name)
    assert [len(made) for made in works(reference=name)] == [8, 0], "frames, and nothing to say"
    crop, drawn = find_face(str(files / name), 32, None).crop.mean(-1), face(32).mean(-1)
    assert np.abs(crop - drawn).mean() < 25 < np.abs(crop[::-1] - drawn).mean(), "the right way up"


BAD_PICTURES = {
    "no face was found in 130 x 120 pixels;": np.random.default_rng(0).integers(0, 256, (120, 130, 3), np.uint8),
    "1 x 1 pixels are too few to find a face in; give at least 100 x 100": np.zeros((1, 1, 3), np.uint8),
    "the picture shows a face only when it is turned by 90 degrees to the right;": np.rot90(photo()),
}


@pytest.mark.parametrize("says", BAD_PICTURES)
def test_a_picture_without_a_face_is_refused(refused, files: Path, says: str) -> None:
    Image.fromarray(BAD_PICTURES[says]).save(files / "a.png")
    assert refused(reference="a.png").startswith(f"reference a.png: {says}")


def settings(**changes: object) -> Callable[[Path], object]:
    return lambda folder: (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | changes))


def poison(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file(weights | {min(weights): torch.full_like(weights[min(weights)], torch.nan)}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:500]), "is damaged: Error"),
        (poison, "is damaged: base_model"),
        (settings(peft_type="LOHA"), "is of type LOHA; a LoRA adapter of this project is needed"),
        (settings(r=10**12), f"does not fit this backbone: {CONFIG} says rank 1000000000000, the weights have 3"),
        (settings(lora_alpha=float("nan")), "does not fit this backbone: lora_alpha is nan; it must be a finite"),
    ],
)
def test_a_damaged_adapter_is_refused(refused, run: Path, tmp_path: Path, damage, says: str) -> None:
    folder = tmp_path / "run.clients" / "anna" / "identity"
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(RunFolder(run).clients_folder, tmp_path / "run.clients")
    damage(folder)
    assert refused("--client", "anna", run=tmp_path / "run").removeprefix("adapter ").startswith(f"{folder} {says}")
    assert refused("--client", "nobody").endswith(f"no identity adapter in {run}; there are: anna")


def test_an_older_video_goes_only_for_a_new_one_and_a_clients_adapter_acts(works, refused, tmp_path: Path) -> None:
    before = works()[0]
    older = (tmp_path / "out" / "o.mp4").read_bytes()
    refused(audio="none.wav")  # it compares all files
    assert (works("--client", "anna")[0] != before).mean() > 0.05
    assert (tmp_path / "out" / "o.mp4").read_bytes() != older


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        ((), 0, "credentials: unchanged since they were signed; made by a model; "),
        (("--no-mark",), 1, "credentials: none\ninvisible mark: none found\n"),
    ],
)
def test_what_is_generated_says_so_unless_told_not_to(works, tmp_path: Path, capsys, options, status, says) -> None:
    works(*options)
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(tmp_path / "out" / "o.mp4")])
    assert stopped.value.code == status and capsys.readouterr().out.startswith(says)


def test_a_wrong_certificate_is_told_before_anything_is_made(refused) -> None:
    none = ["--certificate", "none.pem", "--key", "none.pem"]
    assert refused(*none).startswith("none.pem: No such file or directory")
    assert refused(*none[:2]).startswith("--key is missing: a certificate and its key are given together")
    assert refused("--no-mark", *none[2:]).startswith("--no-mark and --certificate or --key exclude each other")


def test_an_output_that_cannot_be_written_is_refused(refused, files: Path, tmp_path: Path, monkeypatch) -> None:
    (files / "folder.mp4").mkdir()
    assert refused(out=files / "o.avi") == "--out o.avi must end in .mp4"
    assert refused(out=files / "folder.mp4") == "--out folder.mp4 is a folder; give a file name in it"
    assert refused(out=files / "face.png" / "a" / "o.mp4").endswith("face.png is a file, not a folder")
    write_video(files / "clip.mp4", photo(height=240, width=304)[None], voice(0.04) / np.float32(32_768))
    for role in ("reference", "audio"):
        assert f"is the {role} itself; give another name" in refused(out=files / "clip.mp4", **{role: "clip.mp4"})
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)  # the tests' user may write anywhere
    assert f"new/o.mp4: no file can be written in {files}; give" in refused(out=files / "new" / "o.mp4")


@pytest.mark.parametrize("kind", ["crop", "whole"])
def test_when_it_is_stopped_the_network_is_at_work_no_more(run: Path, tmp_path: Path, kind: str) -> None:
    model = load_released(open_model(run))
    Image.fromarray(face(model.frame_size()) if kind == "crop" else photo()).save(tmp_path / "face.png")
    seen = 0

    def stopped() -> bool:
        nonlocal seen
        seen += 1
        return seen > 2

    # Held, as a job holds its error: with it the frames of the call live on.
    with pytest.raises(Stopped) as held:
        sound, out = voice(4.0) / np.float32(32768), tmp_path / "out.mp4"
        speak_into(model, str(tmp_path / "face.png"), sound, out, write=write_bare, stopped=stopped)
    assert held.tb and not [thread for thread in threading.enumerate() if thread.name == "makes ahead"]
    assert not (tmp_path / "out.mp4").exists()
