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

from fedtalk_ray.errors import RunError
from fedtalk_ray.model import adapters
from fedtalk_ray.model.musetalk_networks import position_code
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


def test_one_pass_is_the_published_one(folder: Path, pipeline: TalkingHeadPipeline) -> None:
    """Upper half before reference, timestep 0, tokens with their position code, through the stock U-Net."""
    stock = UNet2DConditionModel(**json.loads((folder / "musetalkV15" / "musetalk.json").read_text()))
    stock.load_state_dict(torch.load(folder / UNET, weights_only=True))
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
    path = folder / UNET
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def spoil_config(folder: Path, **changes: object) -> None:
    path = folder / "musetalkV15" / "musetalk.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


UNET = "musetalkV15/unet.pth"

BAD = {
    "missing": (
        lambda place: spoil_tensor(place, lambda state: state.pop("conv_in.bias")),
        r"unet\.pth lacks tensor conv_in\.bias; ",
    ),
    "renamed": (
        lambda place: spoil_tensor(place, lambda state: state.update(extra=state["conv_in.bias"])),
        r"unet\.pth holds an unknown tensor extra; ",
    ),
    "shape": (
        lambda place: spoil_tensor(place, lambda state: state.update({"conv_in.bias": torch.zeros(3)})),
        r"unet\.pth: tensor conv_in\.bias is \[3\], and by musetalk\.json \[32\]$",
    ),
    "damaged": (
        lambda place: (place / UNET).write_bytes(b"PK nothing"),
        r"unet\.pth holds no tensors that can be read: ",
    ),
    "another U-Net": (lambda place: spoil_config(place, in_channels=4), r"in_channels is 4; MuseTalk 1\.5 has 8$"),
    "our own setting": (
        lambda place: spoil_config(place, latent_size=3),
        r"latent_size is no setting of MuseTalk 1\.5",
    ),
    "another autoencoder": (
        lambda place: (place / "sd-vae" / "config.json").write_text('{"_class_name": "VQModel", "latent_channels": 3}'),
        r"sd-vae holds VQModel of 3 latent channels; MuseTalk needs AutoencoderKL of 4, sd-vae-ft-mse$",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_folder_that_is_no_musetalk_is_refused_in_one_line(copy: Path, kind: str) -> None:
    spoil, line = BAD[kind]
    spoil(copy)
    with pytest.raises(RunError, match=line) as told:
        load_pipeline(str(copy))
    assert "\n" not in str(told.value)


def test_a_pickle_that_runs_code_is_not_run(copy: Path, tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv_in.bias": Runs()}, copy / UNET)
    with pytest.raises(RunError, match=r"unet\.pth holds no tensors that can be read"):
        load_pipeline(str(copy))
    assert not (tmp_path / "ran").exists()
