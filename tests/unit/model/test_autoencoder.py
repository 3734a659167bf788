"""Autoencoders: our cosine patches against linear algebra, diffusers' own classes, and one name for one encoder."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from fedtalk_ray.model.autoencoder import (
    AutoencoderError,
    PatchAutoencoder,
    decode_latents,
    encode_frames,
    encoder_fingerprint,
    frames_to_pixels,
    load_autoencoder,
    pixels_to_frames,
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


def test_a_plain_colour_by_hand() -> None:
    """A patch of 4 x 4: each coefficient is 16 pixels times 1/4, along (1,1,1)/√3, (-1,-1,2)/√6, (1,-1,0)/√2."""
    luma, autoencoder = 4, PatchAutoencoder(luma_coefficients=4)
    red, green, blue = 0.7, -0.2, 0.4
    picture = torch.tensor([red, green, blue])[None, :, None, None].expand(1, 3, 8, 12)
    expected = torch.zeros(luma + 6)
    expected[0] = 4 * (red + green + blue) / 3**0.5
    expected[luma] = 4 * (-red - green + 2 * blue) / 6**0.5
    expected[luma + 3] = 4 * (red - green) / 2**0.5
    latents = autoencoder.encode(picture).latents
    assert latents.shape == (1, luma + 6, 2, 3)
    assert torch.allclose(latents, expected[None, :, None, None].expand_as(latents), atol=1e-5)


def test_every_pixel_value_survives_the_way_to_floats_and_back_and_others_are_clipped_and_rounded() -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    pixels = frames_to_pixels(frames)
    assert pixels.shape == (1, 3, 16, 16) and (pixels.min(), pixels.max()) == (-1, 1)
    assert (pixels_to_frames(pixels) == frames).all()
    others = torch.tensor([-9.0, 9.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert pixels_to_frames(others)[0, ..., 0].ravel().tolist() == [0, 255, 100, 101]


def test_the_scaling_factor_multiplies_latents_and_is_taken_out_again_whatever_the_batch() -> None:
    plain, scaled, frames = PatchAutoencoder(), PatchAutoencoder(scaling_factor=0.25), noise_frames()
    latents = encode_frames(scaled, frames, 2)
    np.testing.assert_allclose(latents, 0.25 * encode_frames(plain, frames), atol=1e-6)
    scaled.load_state_dict(plain.state_dict())
    back = decode_latents(scaled, torch.from_numpy(latents), 2)
    assert np.abs(back.astype(int) - decode_latents(plain, torch.from_numpy(encode_frames(plain, frames)))).max() <= 1


@pytest.mark.parametrize("inside", ["", "vae", "autoencoder"])
def test_an_autoencoder_is_found_in_its_folder_or_in_a_pipelines(inside: str, tmp_path: Path) -> None:
    autoencoder = PatchAutoencoder(luma_coefficients=3)
    autoencoder.save_pretrained(str(tmp_path / inside))
    loaded = load_autoencoder(str(tmp_path))
    assert isinstance(loaded, PatchAutoencoder) and loaded.latent_channels == 9
    assert encoder_fingerprint(loaded) == encoder_fingerprint(autoencoder)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (None, "no file named config.json"),
        ("{not json", "not a valid JSON"),
        ("{}", "holds no class name"),
        ('{"_class_name": "UNet2DModel"}', "UNet2DModel"),
        ("cut weights", "."),
    ],
)
def test_a_folder_without_a_usable_autoencoder_is_one_clear_line(damage, says: str, tmp_path: Path) -> None:
    if damage == "cut weights":
        PatchAutoencoder().save_pretrained(str(tmp_path))
        weights = tmp_path / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage is not None:
        (tmp_path / "config.json").write_text(damage)
    for folder, why in ((tmp_path, says), ("/no/such/folder", 'Give "lower-face"')):
        with pytest.raises(AutoencoderError, match=why) as told:
            load_autoencoder(str(folder))
        assert str(folder) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("make", "counts", "does_not"),
    [
        (PatchAutoencoder, ["encoder.weight"], ["decoder.4.bias"]),
        (tiny_kl, ["encoder.conv_in.weight", "quant_conv.bias"], ["post_quant_conv.weight"]),
    ],
)
def test_the_fingerprint_names_the_encoder_and_not_the_decoder(make, counts: list[str], does_not: list[str]) -> None:
    plain = encoder_fingerprint(make())
    assert plain == encoder_fingerprint(make()) != encoder_fingerprint(make(scaling_factor=0.3))
    # Shards name it: another one of the default would make everybody's shards useless.
    assert encoder_fingerprint(load_autoencoder("patch")) == "16d0022ef9f6cce6"
    for names, changes in ((counts, True), (does_not, False)):
        for name in names:
            autoencoder = make()
            autoencoder.get_parameter(name).data.flatten()[0] += 1e-3
            assert (encoder_fingerprint(autoencoder) != plain) == changes, name
