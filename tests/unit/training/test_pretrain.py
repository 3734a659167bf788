"""Pretraining: every part learns what it is for, the latents that shards hold stay valid, and a seed repeats it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import ShardError
from fedtalk_ray.media.speech import LogMel
from fedtalk_ray.model.autoencoder import PatchAutoencoder, encode_frames, encoder_fingerprint, frames_to_pixels
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.presets import PresetError
from fedtalk_ray.settings import LossConfig
from fedtalk_ray.shards.format import Piece, load_manifest
from fedtalk_ray.shards.reader import read_pieces
from fedtalk_ray.training.optimise import budget
from fedtalk_ray.training.pretrain import pretrain
from fedtalk_ray.training.train_decoder import autoencoder_psnr, random_frames, train_decoder
from fedtalk_ray.training.train_denoiser import random_batch, set_units, train_denoiser
from fedtalk_ray.training.train_identity import train_identity
from fedtalk_ray.training.train_speech_motion import train_speech_motion


@pytest.fixture(scope="module")
def shards(make_shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain") / "shards"
    make_shards(folder, {"s1": [30, 30], "s2": [30, 30], "s3": [30, 30]})
    return folder


@pytest.fixture(scope="module")
def pieces(shards: Path) -> list[Piece]:
    manifest = load_manifest(shards)
    return [piece for name in manifest.clients() for piece in read_pieces(shards, manifest, name, "train")]


@pytest.fixture(scope="module")
def lips(pieces: list[Piece]) -> list[np.ndarray]:
    """Lip shapes that name their clip and frame."""
    return [
        np.stack([np.full(6, 100 * clip + frame, np.float32) for frame in range(len(piece.frames))])
        for clip, piece in enumerate(pieces)
    ]


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


def test_a_batch_holds_windows_of_the_clips(
    pieces: list[Piece], lips: list[np.ndarray], make_pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the variations left out, every window is a clip's own, with its sound and a reference of the same clip."""
    monkeypatch.setattr("fedtalk_ray.training.train_denoiser.vary_pictures", lambda frames, _: frames_to_pixels(frames))
    monkeypatch.setattr("fedtalk_ray.training.train_denoiser.vary_speech", lambda speech, *_: speech)
    pipeline = make_pipeline()
    batch = random_batch(pipeline, pieces, lips, 24, np.random.default_rng(0))
    assert batch.latents.shape == (24, 4, 4, 8, 8) and batch.speech.shape == (24, 4, *LogMel.shape)
    clips = [encode_frames(pipeline.autoencoder, piece.frames) for piece in pieces]
    seen, told = set(), 0
    for window, sound, reference, shapes in zip(batch.latents, batch.speech, batch.reference, batch.lips, strict=True):
        (clip, start), *more = [
            (index, begin)
            for index, clip in enumerate(clips)
            for begin in range(len(clip) - 3)
            if np.allclose(clip[begin : begin + 4], window, atol=1e-5)
        ]
        assert not more and any(np.allclose(frame, reference, atol=1e-5) for frame in clips[clip])
        assert np.array_equal(pieces[clip].speech[start : start + 4].astype(np.float32), sound)
        assert shapes.isnan().all() or np.array_equal(shapes, lips[clip][start : start + 4])
        told += not shapes.isnan().any()
        seen.add(clip)
    assert seen == set(range(len(pieces))) and 10 < told < 24, "some windows are told their lips, 7 in 10"


def test_a_batch_is_varied(pieces: list[Piece], lips: list[np.ndarray], make_pipeline) -> None:
    pipeline = make_pipeline()
    batch = random_batch(pipeline, pieces, lips, 8, np.random.default_rng(0))
    stored = np.concatenate([piece.speech.astype(np.float32) for piece in pieces])
    assert not any(np.array_equal(frame, stored[0]) for frame in batch.speech.flatten(0, 1).numpy())
    latents = np.concatenate([encode_frames(pipeline.autoencoder, piece.frames) for piece in pieces])
    for window in batch.latents:
        assert np.abs(latents - window[0].numpy()).mean((1, 2, 3)).min() > 1e-3


def test_units_are_set_from_the_training_clips(pieces: list[Piece], make_denoiser) -> None:
    denoiser = make_denoiser(latent_channels=16)
    set_units(denoiser, pieces, np.random.default_rng(0))
    frames = np.concatenate([piece.latents[::5] for piece in pieces]).astype(float)
    np.testing.assert_allclose(denoiser.reference_mean, frames.mean((0, 2, 3)), atol=1e-3)
    np.testing.assert_allclose(denoiser.reference_std, np.maximum(frames.std((0, 2, 3)), 1e-3), rtol=0.01)


def test_speech_motion_learns_and_the_u_net_is_not_touched(
    pieces: list[Piece], make_pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both what it is taught: the picture of the motion, and the lip shapes as the code's first numbers."""
    monkeypatch.setattr("fedtalk_ray.training.train_speech_motion.CLIPS", 2)
    denoiser = make_pipeline(awake=False, latent_channels=16).denoiser
    set_units(denoiser, pieces, np.random.default_rng(0))
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    target, sound = (
        torch.cat([torch.from_numpy(part.astype(np.float32)) for part in column])[None]
        for column in zip(*((p.latents - p.latents.mean(0), p.speech) for p in pieces), strict=True)
    )
    target = target / denoiser.residual_std[:, None, None]

    loud = [np.repeat(piece.speech.astype(np.float32).mean((1, 2))[:, None] + 2, 6, axis=1) for piece in pieces]

    def errors() -> tuple[float, float]:
        denoiser.eval()
        with torch.no_grad():
            shapes = denoiser.speech_encoder(sound)[0, :, :6] - torch.from_numpy(np.concatenate(loud))
            return float((denoiser.speech_motion(sound) - target).square().mean()), float(shapes.square().mean())

    start = errors()
    train_speech_motion(denoiser, pieces, loud, budget(250, None), 1.0, np.random.default_rng(0))
    assert errors()[0] < 0.95 * start[0] and errors()[1] < 0.5 * start[1]
    changed = {name for name, value in denoiser.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("speech_encoder.", "speech_map.")) for name in changed)


def test_what_remains_of_the_weights_is_their_average(
    pieces: list[Piece], lips: list[np.ndarray], make_pipeline
) -> None:
    """After one step the average has gone 1 - min(0.998, 1/10) = 0.9 of the way; what sound means stays as it was."""
    pipeline = make_pipeline()
    first = {name: value.clone() for name, value in pipeline.denoiser.named_parameters()}
    steps = train_denoiser(pipeline, pieces, lips, budget(1, None), LossConfig(), 0, learning_rate=0.1)
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


def test_it_goes_on_from_another_pipeline(shards: Path, tmp_path: Path) -> None:
    """One step from given weights leaves most of them near where they were; from random ones it cannot."""
    for name, start in (("first", None), ("second", str(tmp_path / "first"))):
        pretrain(shards, tmp_path / name, minutes=9, steps=1, seed=len(name), start=start)
    one, other = (
        torch.cat(
            [
                value.flatten()
                for name, value in TalkingHeadPipeline.from_pretrained(str(tmp_path / each)).denoiser.named_parameters()
                if name.endswith("conv1.weight") and "block" in name
            ]
        )
        for each in ("first", "second")
    )
    assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.99
    assert "--from" in (tmp_path / "second" / "README.md").read_text()


def test_a_size_beside_a_start_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(PresetError, match="preset 'base' cannot be chosen beside a start: fedtalk-tiny has a size"):
        pretrain(shards, tmp_path / "out", minutes=1, size="base", start="fedtalk-tiny")


def test_clips_are_kept_aside_where_the_shards_keep_none(
    make_shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 13 clips the first and the last of every dozen calibrate; nothing trains on them."""
    trained, calibrated = [], []
    pretraining = "fedtalk_ray.training.pretrain."
    real = train_denoiser

    def watched(pipeline, pieces, *args, **more):
        trained.extend(piece.client for piece in pieces)
        return real(pipeline, pieces, *args, **more)

    monkeypatch.setattr(pretraining + "train_denoiser", watched)
    monkeypatch.setattr(pretraining + "calibrate", lambda _, pieces, __: calibrated.extend(p.client for p in pieces))
    make_shards(tmp_path / "shards", {f"s{n:02}": [16] for n in range(13)}, unseen=())
    pretrain(tmp_path / "shards", tmp_path / "out", minutes=9, steps=1)
    assert calibrated == ["s00", "s12"] and trained == [f"s{n:02}" for n in range(1, 12)]


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
