"""Autoencoders: our cosine patches against linear algebra, diffusers' own classes, and one name for one encoder."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.model.autoencoder import (
    AutoencoderError,
    PatchAutoencoder,
    decode_latents,
    encode_frames,
    encoder_fingerprint,
    frames_to_pixels,
    load_autoencoder,
    pixels_to_frames,
    scaling_factor,
)


def noise_frames(count: int = 3, side: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def tiny_kl(**config: object) -> diffusers.AutoencoderKL:
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        **config,
    ).eval()


def tiny_taesd(**config: object) -> diffusers.AutoencoderTiny:
    torch.manual_seed(0)
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        **config,
    ).eval()


def test_the_basis_is_orthonormal() -> None:
    rows = PatchAutoencoder().encoder.weight.flatten(1).double()
    assert rows.shape == (16, 48)
    assert torch.allclose(rows @ rows.T, torch.eye(16, dtype=torch.double), atol=1e-6)


@pytest.mark.parametrize("luma", [1, 4, 16])
def test_a_plain_colour_by_hand(luma: int) -> None:
    """A 4 x 4 patch of r, g, b: each coefficient is 16 pixels times 1/4, along (1,1,1)/√3, (-1,-1,2)/√6, (1,-1,0)/√2.

    Grey of value p has brightness 4√3 p and nothing else.
    """
    autoencoder = PatchAutoencoder(luma_coefficients=luma)
    red, green, blue = 0.7, -0.2, 0.4
    picture = torch.tensor([red, green, blue])[None, :, None, None].expand(1, 3, 8, 12)
    expected = torch.zeros(luma + 6)
    expected[0] = 4 * (red + green + blue) / 3**0.5
    expected[luma] = 4 * (-red - green + 2 * blue) / 6**0.5
    expected[luma + 3] = 4 * (red - green) / 2**0.5
    latents = autoencoder.encode(picture).latents
    assert latents.shape == (1, luma + 6, 2, 3)
    assert torch.allclose(latents, expected[None, :, None, None].expand_as(latents), atol=1e-5)
    grey = autoencoder.encode(torch.full((1, 3, 4, 4), 0.5)).latents.flatten()
    assert grey[0].item() == pytest.approx(4 * 3**0.5 * 0.5, abs=1e-5) and grey[1:].abs().max() < 1e-6


def test_untrained_the_decoder_projects_onto_what_the_encoder_kept() -> None:
    autoencoder = PatchAutoencoder()
    picture = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = autoencoder.encode(picture).latents
        once = autoencoder.decode(latents).sample
        twice = autoencoder(once).sample
    assert torch.allclose(once, twice, atol=1e-5)
    assert (once * (picture - once)).sum().abs() < 1e-2, "what is lost is orthogonal to what is kept"
    assert once.square().sum().item() == pytest.approx(latents.square().sum().item(), rel=1e-5)
    assert (picture - once).square().sum() > 100, "16 of 48 coefficients of noise lose two thirds of it"


def test_smooth_pictures_survive() -> None:
    y, x = np.mgrid[:64, :64] / 64
    smooth = np.stack([np.sin(3 * x) * 100 + 128, np.cos(2 * y) * 100 + 128, (x + y) * 100], -1)
    frames = smooth.round().astype(np.uint8)[None]
    autoencoder = load_autoencoder("patch")
    back = decode_latents(autoencoder, torch.from_numpy(encode_frames(autoencoder, frames)))
    assert np.abs(back.astype(int) - frames).mean() < 0.7


def test_the_decoder_can_learn_detail_and_the_encoder_cannot_change() -> None:
    autoencoder = PatchAutoencoder()
    autoencoder(torch.randn(1, 3, 8, 8)).sample.square().mean().backward()
    assert autoencoder.encoder.weight.grad is None
    assert autoencoder.decoder[-2].weight.grad.abs().sum() > 0


def test_every_pixel_value_survives_the_way_to_floats_and_back() -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    pixels = frames_to_pixels(frames)
    assert pixels.shape == (1, 3, 16, 16) and (pixels.min(), pixels.max()) == (-1, 1)
    assert (pixels_to_frames(pixels) == frames).all()


def test_pixels_out_of_range_are_clipped_and_others_rounded() -> None:
    pixels = torch.tensor([-9.0, 9.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert pixels_to_frames(pixels)[0, ..., 0].ravel().tolist() == [0, 255, 100, 101]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4))
def test_batches_do_not_matter(count: int, batch: int) -> None:
    autoencoder, frames = load_autoencoder("patch"), noise_frames(count, 16)
    latents = encode_frames(autoencoder, frames, batch)
    assert latents.shape == (count, 16, 4, 4) and latents.dtype == np.float32
    np.testing.assert_allclose(latents, encode_frames(autoencoder, frames), atol=1e-5)
    decoded = decode_latents(autoencoder, torch.from_numpy(latents), batch)
    assert decoded.shape == frames.shape and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - decode_latents(autoencoder, torch.from_numpy(latents))).max() <= 1


def test_the_scaling_factor_multiplies_latents_and_is_taken_out_again() -> None:
    plain, scaled, frames = PatchAutoencoder(), PatchAutoencoder(scaling_factor=0.25), noise_frames()
    latents = encode_frames(scaled, frames)
    np.testing.assert_allclose(latents, 0.25 * encode_frames(plain, frames), atol=1e-6)
    scaled.load_state_dict(plain.state_dict())
    back = decode_latents(scaled, torch.from_numpy(latents))
    assert (back == decode_latents(plain, torch.from_numpy(encode_frames(plain, frames)))).all()


@pytest.mark.parametrize("make", [tiny_kl, tiny_taesd])
def test_autoencoders_of_diffusers_work_as_they_are(make, tmp_path: Path) -> None:
    original = make(scaling_factor=0.5)
    original.save_pretrained(str(tmp_path))
    loaded = load_autoencoder(str(tmp_path))
    assert type(loaded) is type(original) and not loaded.training and scaling_factor(loaded) == 0.5
    frames = noise_frames()
    latents = encode_frames(loaded, frames)
    with torch.no_grad():
        encoded = original.encode(frames_to_pixels(frames))
        code = encoded.latent_dist.mean if make is tiny_kl else encoded.latents
        decoded = original.decode(code).sample
    np.testing.assert_allclose(latents, 0.5 * code.numpy(), atol=1e-5)
    assert (encode_frames(loaded, frames) == latents).all(), "the mode, not a sample"
    back = decode_latents(loaded, torch.from_numpy(latents))
    assert np.abs(back.astype(int) - pixels_to_frames(decoded)).max() <= 1


@pytest.mark.parametrize("inside", ["", "vae", "autoencoder"])
def test_an_autoencoder_is_found_in_its_folder_or_in_a_pipelines(inside: str, tmp_path: Path) -> None:
    autoencoder = PatchAutoencoder(luma_coefficients=3)
    autoencoder.save_pretrained(str(tmp_path / inside))
    loaded = load_autoencoder(str(tmp_path))
    assert isinstance(loaded, PatchAutoencoder) and loaded.latent_channels == 9
    assert encoder_fingerprint(loaded) == encoder_fingerprint(autoencoder)


def test_two_fresh_patch_autoencoders_are_the_same_one() -> None:
    torch.manual_seed(1)
    first = load_autoencoder("patch")
    state = torch.get_rng_state()
    second = load_autoencoder("patch")
    assert torch.equal(state, torch.get_rng_state())
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def write_config(folder: Path, content: object) -> None:
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))


def cut_weights(folder: Path) -> None:
    PatchAutoencoder().save_pretrained(str(folder))
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(lambda folder: None, "no file named config.json", id="empty"),
        pytest.param(lambda folder: write_config(folder, "{not json"), "not a valid JSON", id="not-json"),
        pytest.param(lambda folder: write_config(folder, []), None, id="list"),
        pytest.param(lambda folder: write_config(folder, {}), "holds no class name", id="no-class"),
        pytest.param(lambda folder: write_config(folder, {"_class_name": "UNet2DModel"}), "UNet2DModel", id="unet"),
        pytest.param(lambda folder: write_config(folder, {"_class_name": "PatchAutoencoder"}), None, id="no-weights"),
        pytest.param(cut_weights, None, id="cut-weights"),
    ],
)
def test_a_folder_without_a_usable_autoencoder_is_one_clear_line(damage, says: str | None, tmp_path: Path) -> None:
    damage(tmp_path)
    with pytest.raises(AutoencoderError, match=says) as caught:
        load_autoencoder(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["/no/such/folder", "no-such/autoencoder", "not a name"])
def test_a_place_that_does_not_exist_is_one_clear_line(source: str) -> None:
    with pytest.raises(
        AutoencoderError, match=f'\'{source}\' cannot be loaded: .* Give "lower-face", "patch", a folder'
    ) as caught:
        load_autoencoder(source)
    assert "\n" not in str(caught.value)


def nudge(parameter: torch.nn.Parameter) -> None:
    parameter.data.flatten()[0] += 1e-3


def test_the_fingerprint_of_the_default_never_changes() -> None:
    """Shards name it: a change here would make everybody's shards useless."""
    assert encoder_fingerprint(load_autoencoder("patch")) == "16d0022ef9f6cce6"


@pytest.mark.parametrize(
    ("make", "counts", "does_not"),
    [
        (PatchAutoencoder, ["encoder.weight"], ["decoder.0.weight", "decoder.4.bias"]),
        (tiny_kl, ["encoder.conv_in.weight", "quant_conv.bias"], ["decoder.conv_out.bias", "post_quant_conv.weight"]),
        (tiny_taesd, ["encoder.layers.0.weight"], ["decoder.layers.0.bias"]),
    ],
)
def test_the_fingerprint_names_the_encoder_and_not_the_decoder(make, counts: list[str], does_not: list[str]) -> None:
    plain = encoder_fingerprint(make())
    assert plain == encoder_fingerprint(make())
    for names, changes in ((counts, True), (does_not, False)):
        for name in names:
            autoencoder = make()
            nudge(autoencoder.get_parameter(name))
            assert (encoder_fingerprint(autoencoder) != plain) == changes, name
    assert encoder_fingerprint(make(scaling_factor=0.3)) != plain
