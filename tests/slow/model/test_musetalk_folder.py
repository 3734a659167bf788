"""MuseTalk's folder: what is read of it, what is refused and how, and that stock libraries read what is saved."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import PeftModel
from PIL import Image
from scipy.io import wavfile

from fedtalk_ray.commands.cli import main
from fedtalk_ray.errors import RunError, ShardError
from fedtalk_ray.generation.generate import generate
from fedtalk_ray.media.video import read_video
from fedtalk_ray.model import adapters
from fedtalk_ray.model.autoencoder import encode_frames, load_autoencoder
from fedtalk_ray.model.musetalk_networks import MuseTalkDenoiser, position_code
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline
from tests.musetalk_folder import PIXELS, write_musetalk


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_musetalk(tmp_path_factory.mktemp("musetalk") / "models")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> TalkingHeadPipeline:
    return load_pipeline(str(folder))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "models"))


def face(seed: int = 0) -> np.ndarray:
    """A smooth picture uint8 [64, 64, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:PIXELS, :PIXELS] / PIXELS
    waves = np.stack([np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y) for _ in range(3)], -1)
    return (128 + 90 * waves).astype(np.uint8)


def test_the_full_size_has_the_published_names_and_shapes() -> None:
    """Those of the stock class with the published settings, on the meta device."""
    with torch.device("meta"):
        ours = MuseTalkDenoiser()
        stock = UNet2DConditionModel(sample_size=64, in_channels=8, cross_attention_dim=384)
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert len(shapes) == 686
    assert shapes == {name: value.shape for name, value in stock.state_dict().items()}


def test_a_face_is_encoded_whole_and_without_its_lower_half(folder: Path, pipeline: TalkingHeadPipeline) -> None:
    """Black is -1, from row 32 of 64 on; latents are the modes times .18215."""
    stock = AutoencoderKL.from_pretrained(folder / "sd-vae").eval()
    pixels = torch.from_numpy(face()).permute(2, 0, 1)[None] / 127.5 - 1
    upper = pixels.clone()
    upper[:, :, 32:] = -1
    with torch.no_grad():
        expected = torch.cat([stock.encode(each).latent_dist.mode() for each in (pixels, upper)], dim=1) * 0.18215
    found = torch.from_numpy(encode_frames(pipeline.autoencoder, face()[None]))
    assert found.shape == (1, 8, 8, 8)
    torch.testing.assert_close(found, expected)
    # Another mouth is not seen in what is given.
    changed = face()
    changed[40:60, 10:50] = 7
    other = torch.from_numpy(encode_frames(pipeline.autoencoder, changed[None]))
    assert torch.equal(other[:, 4:], found[:, 4:]) and not torch.allclose(other[:, :4], found[:, :4])


def test_one_pass_is_the_published_one(folder: Path, pipeline: TalkingHeadPipeline) -> None:
    """Upper half before reference, timestep 0, tokens with their position code, through the stock U-Net."""
    stock = UNet2DConditionModel(**json.loads((folder / "musetalkV15" / "musetalk.json").read_text()))
    stock.load_state_dict(torch.load(folder / "musetalkV15" / "unet.pth", weights_only=True))
    stock.eval()
    torch.manual_seed(1)
    sample, reference = torch.randn(2, 3, 8, 8, 8), torch.randn(2, 8, 8, 8)
    speech = torch.randn(2, 3, 10, 1920)
    with torch.no_grad():
        found = pipeline.denoiser(sample, torch.tensor([3, 999]), speech, reference)
        for window, frame in ((0, 0), (1, 2)):
            pictures = torch.cat([sample[window, frame, 4:], reference[window, :4]])[None]
            tokens = speech[window, frame].reshape(1, 50, 384) + position_code(50, 384)
            expected = stock(pictures, torch.tensor([0]), tokens).sample[0]
            torch.testing.assert_close(found[window, frame], expected, atol=2e-5, rtol=1e-4)


def test_the_position_code_by_hand() -> None:
    code = position_code(50, 384)
    assert code[0, :4].tolist() == [0, 1, 0, 1]
    assert code[3, 0] == pytest.approx(np.sin(3), abs=1e-6) and code[3, 1] == pytest.approx(np.cos(3), abs=1e-6)
    assert code[49, 100] == pytest.approx(np.sin(49 / 10_000 ** (100 / 384)), abs=1e-5)
    assert code[49, 101] == pytest.approx(np.cos(49 / 10_000 ** (100 / 384)), abs=1e-5)


def test_a_clip_of_its_own_frames_is_each_frame_alone(pipeline: TalkingHeadPipeline) -> None:
    """Over frames that differ: each as if it were the only one, whatever the batch and the frame rate."""
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    faces = [face(seed) for seed in range(11)]
    together = np.stack(list(pipeline.speak_over(faces, sound)))
    assert together.shape == (11, PIXELS, PIXELS, 3) and together.dtype == np.uint8
    alone = pipeline(faces[4], sound).frames[4]
    assert np.abs(together[4].astype(int) - alone).max() <= 1
    small = np.stack(list(pipeline.speak_over(faces, sound, batch=3)))
    assert np.abs(together.astype(int) - small).max() <= 1
    # At 50 a second frames 8 and 9 hear what frame 4 of 25 a second hears.
    fast = list(pipeline.speak_over([faces[4]] * 11, sound, Fraction(50)))
    assert all(np.abs(fast[number].astype(int) - alone).max() <= 1 for number in (8, 9))
    assert (fast[7] != fast[8]).any() and (fast[9] != fast[10]).any()


def test_shown_one_person_no_frames_own_mouth_is_seen(pipeline: TalkingHeadPipeline) -> None:
    """What lies below the half of a frame changes nothing then; otherwise it is the reference."""
    sound = np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32)
    changed = face(1)
    changed[40:60, 10:50] = 7

    def said(of: np.ndarray, person: np.ndarray | None) -> np.ndarray:
        return next(iter(pipeline.speak_over([of], sound, person=person)))

    assert (said(face(1), face(2)) == said(changed, face(2))).all()
    assert (said(face(1), face(2)) != said(face(1), face(3))).any()
    assert (said(face(1), None) != said(changed, None)).any()


def test_the_folder_itself_is_spoken_with_and_its_one_pass_takes_no_steps(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(face()).save(tmp_path / "face.png")
    wavfile.write(tmp_path / "sound.wav", 16_000, np.random.default_rng(0).normal(0, 2000, 8000).astype(np.int16))
    command = ["generate", "--run", str(folder), "--reference", str(tmp_path / "face.png")]
    command += ["--audio", str(tmp_path / "sound.wav"), "--out", str(tmp_path / "talk.mp4"), "--no-mark"]
    for more, code in (["--steps", "4"], 1), (["--guidance", "2"], 1), ([], 0):
        with pytest.raises(SystemExit) as ended:
            main([*command, *more])
        assert (ended.value.code or 0) == code
        assert (tmp_path / "talk.mp4").exists() == (code == 0)
        told = capsys.readouterr().err
        assert not code or told.endswith("this model makes each frame in one pass; leave them out\n")
    assert len(read_video(tmp_path / "talk.mp4").frames) == 13


def test_shards_framed_otherwise_are_no_reference(folder: Path, make_shards, tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", {"s1": [30, 30]})
    with pytest.raises(ShardError, match=r"^shards hold aligned crops, but this model takes musetalk ones"):
        generate(folder, "s1/clip0", "s1/clip0", tmp_path / "x.mp4", shards=str(tmp_path / "shards"))


def test_what_is_saved_loads_in_stock_diffusers_and_peft(pipeline: TalkingHeadPipeline, tmp_path: Path, capfd) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    again = load_pipeline(str(tmp_path / "saved"))
    assert "not expected" not in "".join(capfd.readouterr())
    state = pipeline.denoiser.state_dict()
    for found in (again.denoiser, UNet2DConditionModel.from_pretrained(tmp_path / "saved" / "denoiser")):
        assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())
    vae = AutoencoderKL.from_pretrained(tmp_path / "saved" / "autoencoder")
    assert torch.equal(vae.decoder.conv_in.weight, pipeline.autoencoder.decoder.conv_in.weight)

    model = adapters.with_adapters(again.denoiser, 4, 8, 2)
    torch.manual_seed(3)
    for _, parameter in adapters.shared_parameters(model, "adapter"):
        parameter.data.normal_(0, 0.02)
    adapters.use_adapters(model, ["shared"])
    adapters.save_adapter(model, "shared", tmp_path / "shared")
    stock = UNet2DConditionModel.from_pretrained(tmp_path / "saved" / "denoiser").eval()
    pictures, tokens = torch.randn(1, 8, 8, 8), torch.randn(1, 50, 384)
    bare = stock(pictures, 0, tokens).sample
    adapted = PeftModel.from_pretrained(stock, tmp_path / "shared").eval()
    with torch.no_grad():
        theirs = adapted(pictures, 0, tokens).sample
        ours = model(
            torch.cat([torch.zeros(4, 8, 8), pictures[0, :4]])[None, None],
            torch.zeros(1),
            (tokens - position_code(50, 384)).reshape(1, 1, 10, 1920),
            torch.cat([pictures[0, 4:], torch.zeros(4, 8, 8)])[None],
        )[0]
    assert not torch.allclose(theirs, bare, atol=1e-3)
    torch.testing.assert_close(theirs, ours, atol=2e-5, rtol=1e-4)


def spoil_tensor(folder: Path, change) -> None:
    path = folder / "musetalkV15" / "unet.pth"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def spoil_config(folder: Path, **changes: object) -> None:
    path = folder / "musetalkV15" / "musetalk.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BAD = {
    "missing": (
        lambda place: spoil_tensor(place, lambda state: state.pop("conv_in.bias")),
        r"unet\.pth lacks tensor conv_in\.bias; \d+ of MuseTalk 1\.5 are needed$",
    ),
    "renamed": (
        lambda place: spoil_tensor(place, lambda state: state.update(extra=state["conv_in.bias"])),
        r"unet\.pth holds an unknown tensor extra; ",
    ),
    "shape": (
        lambda place: spoil_tensor(place, lambda state: state.update({"conv_in.bias": torch.zeros(3)})),
        r"unet\.pth: tensor conv_in\.bias is \[3\], and by musetalk\.json \[32\]$",
    ),
    "no table": (
        lambda place: torch.save(torch.zeros(2), place / "musetalkV15" / "unet.pth"),
        r"unet\.pth is no plain table of tensors$",
    ),
    "damaged": (
        lambda place: (place / "musetalkV15" / "unet.pth").write_bytes(b"PK nothing"),
        r"unet\.pth holds no tensors that can be read: .*",
    ),
    "gone": (
        lambda place: (place / "musetalkV15" / "unet.pth").unlink(),
        r"unet\.pth holds no tensors that can be read: .*No such file",
    ),
    "another U-Net": (
        lambda place: spoil_config(place, in_channels=4),
        r"musetalk\.json: in_channels is 4; MuseTalk 1\.5 has 8$",
    ),
    "unknown setting": (
        lambda place: spoil_config(place, motion_modules=True),
        r"musetalk\.json: motion_modules is no setting of MuseTalk 1\.5's U-Net$",
    ),
    "another block": (
        lambda place: spoil_config(place, down_block_types=["X"] * 4),
        r"musetalk\.json describes no U-Net: .*",
    ),
    "our own setting": (
        lambda place: spoil_config(place, latent_size=3),
        r"musetalk\.json: latent_size is no setting of MuseTalk 1\.5's U-Net$",
    ),
    "no configuration": (
        lambda place: (place / "musetalkV15" / "musetalk.json").write_text("[]"),
        r"musetalk\.json is no configuration of a U-Net$",
    ),
    "another autoencoder": (
        lambda place: (place / "sd-vae" / "config.json").write_text('{"_class_name": "VQModel", "latent_channels": 3}'),
        r"sd-vae holds VQModel of 3 latent channels; MuseTalk needs AutoencoderKL of 4, sd-vae-ft-mse$",
    ),
    "no autoencoder": (
        lambda place: shutil.rmtree(place / "sd-vae"),
        r"sd-vae holds no autoencoder that can be loaded: .*",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_folder_that_is_no_musetalk_is_refused_in_one_line(copy: Path, kind: str) -> None:
    spoil, line = BAD[kind]
    spoil(copy)
    with pytest.raises(RunError, match=line) as told:
        load_pipeline(str(copy))
    assert "\n" not in str(told.value)


def test_a_file_of_an_old_torch_and_half_the_bits_are_read(copy: Path, pipeline: TalkingHeadPipeline) -> None:
    path = copy / "musetalkV15" / "unet.pth"
    state = {name: value.half() for name, value in torch.load(path, weights_only=True).items()}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    found = load_pipeline(str(copy)).denoiser
    assert found.dtype == torch.float32
    assert torch.equal(found.conv_in.weight, pipeline.denoiser.conv_in.weight.half().float())


def test_a_pickle_that_runs_code_is_not_run(copy: Path, tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv_in.bias": Runs()}, copy / "musetalkV15" / "unet.pth")
    with pytest.raises(RunError, match=r"unet\.pth holds no tensors that can be read"):
        load_pipeline(str(copy))
    assert not (tmp_path / "ran").exists()


def test_an_autoencoder_that_lacks_a_tensor_is_refused(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = copy / "sd-vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["encoder.conv_in.bias"]
    save_file(state, path)
    with pytest.raises(RunError, match=r"sd-vae lacks tensor encoder\.conv_in\.bias of its autoencoder$"):
        load_autoencoder(str(copy))
