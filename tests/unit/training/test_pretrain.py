"""Pretraining: every part learns what it is for, the latents that shards hold stay valid, and a seed repeats it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedtalk_ray.config import LossConfig
from fedtalk_ray.data.shards import Piece, load_manifest, read_pieces
from fedtalk_ray.errors import ShardError
from fedtalk_ray.model.autoencoder import PatchAutoencoder, encode_frames, encoder_fingerprint, frames_to_pixels
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.training.decoder import autoencoder_psnr, random_frames, train_decoder
from fedtalk_ray.training.identity import train_identity
from fedtalk_ray.training.pretrain import (
    PretrainData,
    pretrain,
    random_batch,
    set_units,
    train_denoiser,
    train_speech_map,
    vary_speech,
)
from fedtalk_ray.training.schedule import budget


@pytest.fixture(scope="module")
def shards(make_shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain") / "shards"
    make_shards(folder, {"s1": [30, 30], "s2": [30, 30], "s3": [30, 30]})
    return folder


@pytest.fixture(scope="module")
def pieces(shards: Path) -> list[Piece]:
    manifest = load_manifest(shards)
    return [piece for name in manifest.clients() for piece in read_pieces(shards, manifest, name, "train")]


@pytest.fixture
def data(pieces: list[Piece], make_pipeline) -> PretrainData:
    return PretrainData.encode(pieces, make_pipeline().autoencoder)


def test_mirrored_latents_are_those_of_the_mirrored_picture(pieces: list[Piece], data: PretrainData) -> None:
    """The cosine basis is even or odd: mirroring a patch only changes the sign of some coefficients."""
    plain, mirrored = data.latents[0].astype(float), data.mirrored[0].astype(float)
    assert plain.dtype == mirrored.dtype and plain.shape == mirrored.shape == (30, 4, 8, 8)
    np.testing.assert_allclose(np.abs(mirrored), np.abs(plain[..., ::-1]), atol=2e-3)
    assert np.abs(mirrored - plain).max() > 0.1


def test_the_decoder_gains_detail_and_the_latents_stay(pieces: list[Piece]) -> None:
    torch.manual_seed(0)
    autoencoder = PatchAutoencoder(luma_coefficients=1, chroma_coefficients=1, decoder_width=16).eval()
    check = random_frames(pieces, 8, np.random.default_rng(9))
    name, latents = encoder_fingerprint(autoencoder), encode_frames(autoencoder, check)
    before = autoencoder_psnr(autoencoder, check)
    train_decoder(autoencoder, pieces, budget(40, None), np.random.default_rng(0))
    assert autoencoder_psnr(autoencoder, check) > before + 0.5
    assert encoder_fingerprint(autoencoder) == name and (encode_frames(autoencoder, check) == latents).all()
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())


def test_the_psnr_of_an_autoencoder_by_its_formula(pieces: list[Piece]) -> None:
    autoencoder = PatchAutoencoder(luma_coefficients=1, chroma_coefficients=1).eval()
    frames = pieces[0].frames[:3]
    means = frames.reshape(3, 8, 4, 8, 4, 3).astype(float).mean((2, 4)).repeat(4, 1).repeat(4, 2)
    expected = 10 * np.log10(255**2 / ((means.round() - frames) ** 2).mean())
    assert autoencoder_psnr(autoencoder, frames) == pytest.approx(expected, abs=0.01)


def test_the_identity_encoder_learns_who_is_who(pieces: list[Piece]) -> None:
    torch.manual_seed(0)
    encoder = IdentityEncoder(dimensions=8, widths=(8, 16))

    def gap() -> float:
        """How much more alike two frames of one person are than of two people."""
        with torch.no_grad():
            embedded = torch.stack([encoder(frames_to_pixels(piece.frames[::6])) for piece in pieces])
        within = torch.einsum("pid,pjd->pij", embedded, embedded).mean()
        across = torch.einsum("pid,qjd->pqij", embedded, embedded)[~torch.eye(3, dtype=torch.bool)].mean()
        return float(within - across)

    before = gap()
    train_identity(encoder, pieces, budget(60, None), np.random.default_rng(0))
    assert gap() > before + 0.3
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_sound_is_varied_and_stays_log_mel() -> None:
    speech = np.random.default_rng(0).uniform(-3, 0.5, (1, 4, 20, 40)).astype(np.float32)
    varied = [vary_speech(speech, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert (varied[0] == varied[1]).all() and (varied[0] != varied[2]).any() and (varied[0] != speech).any()
    assert all(v.shape == speech.shape and v.dtype == np.float32 and v.min() >= -3 for v in varied)


def test_a_batch_holds_windows_of_the_clips_plain_or_mirrored(data: PretrainData) -> None:
    batch = random_batch(data, 4, 24, np.random.default_rng(0))
    assert batch.latents.shape == (24, 4, 4, 8, 8) and batch.speech.shape == (24, 4, 20, 40)
    found = {"latents": 0, "mirrored": 0}
    for window, reference in zip(batch.latents.numpy(), batch.reference.numpy(), strict=True):
        for kind in found:
            for clip in getattr(data, kind):
                starts = [k for k in range(len(clip) - 3) if (clip[k : k + 4] == window).all()]
                if starts:
                    assert any((frame == reference).all() for frame in clip), "the reference is of the same clip"
                    found[kind] += 1
    assert sum(found.values()) == 24 and min(found.values()) >= 6


def test_units_are_set_from_the_training_clips(data: PretrainData, make_denoiser) -> None:
    denoiser = make_denoiser()
    set_units(denoiser, data, np.random.default_rng(0))
    frames = np.concatenate([clip[::5] for clip in data.latents]).astype(float)
    np.testing.assert_allclose(denoiser.reference_mean, frames.mean((0, 2, 3)), atol=1e-3)
    np.testing.assert_allclose(denoiser.reference_std, frames.std((0, 2, 3)), rtol=0.01)


def test_the_speech_map_learns_and_the_u_net_is_not_touched(data: PretrainData, make_pipeline) -> None:
    pipeline = make_pipeline(awake=False)
    set_units(pipeline.denoiser, data, np.random.default_rng(0))
    before = {name: value.clone() for name, value in pipeline.denoiser.state_dict().items()}
    batch = random_batch(data, 16, 16, np.random.default_rng(5))
    target = pipeline.denoiser.to_residual(batch.latents, batch.reference)

    def error() -> float:
        with torch.no_grad():
            return float((pipeline.denoiser.speech_motion(batch.speech) - target).square().mean())

    start = error()
    train_speech_map(pipeline, data, budget(50, None), 1.0, seed=0)
    assert error() < 0.97 * start
    changed = {name for name, value in pipeline.denoiser.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("speech_encoder.", "speech_map.")) for name in changed)


def test_what_remains_of_the_weights_is_their_average(data: PretrainData, make_pipeline) -> None:
    """After one step the average has gone 1 - min(0.998, 1/10) = 0.9 of the way to the weights."""
    pipeline = make_pipeline()
    first = {name: value.clone() for name, value in pipeline.denoiser.named_parameters()}
    steps = train_denoiser(pipeline, data, budget(1, None), LossConfig(), 0, learning_rate=0.1)
    terms = next(steps)
    trained = {name: value.detach().clone() for name, value in pipeline.denoiser.named_parameters()}
    assert list(steps) == [] and set(terms) >= {"total", "diffusion", "done"}
    for name, value in pipeline.denoiser.named_parameters():
        assert torch.allclose(value, first[name] + 0.9 * (trained[name] - first[name]), atol=1e-6), name
    assert not pipeline.denoiser.training


def test_all_parts_together_are_repeatable_and_load_by_diffusers_alone(shards: Path, tmp_path: Path) -> None:
    results, weights = [], []
    for name in ("one", "other"):
        results.append(pretrain(shards, tmp_path / name, minutes=9, steps=2, seed=3))
        loaded = TalkingHeadPipeline.from_pretrained(str(tmp_path / name))
        weights.append(torch.cat([value.flatten() for value in loaded.denoiser.state_dict().values()]))
    assert results[0] == results[1] and torch.equal(*weights)
    assert results[0].steps == 2 and results[0].psnr_after > 28 and np.isfinite(results[0].loss)
    assert encoder_fingerprint(loaded.autoencoder) == load_manifest(shards).autoencoder_fingerprint
    assert loaded.identity_encoder is not None


def test_shards_without_a_training_clip_are_refused(make_shards, tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", {"s1": [30], "s2": [30]})
    with pytest.raises(ShardError, match=r"hold no training clip; an identity needs two clips"):
        pretrain(tmp_path / "shards", tmp_path / "out", minutes=1, steps=1)
    assert not (tmp_path / "out").exists()


def test_an_autoencoder_too_poor_to_build_on_is_refused_and_nothing_is_written(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedtalk_ray.training.pretrain.MIN_PSNR", 70.0)
    with pytest.raises(ShardError, match=r"reaches \d+\.\d dB .* at least 70 dB are needed"):
        pretrain(shards, tmp_path / "out", minutes=1, steps=1)
    assert list(tmp_path.iterdir()) == []
