"""The decoder gains detail; the latents that shards hold stay valid."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import TrainingError
from fedtalk_ray.model.autoencoder import PatchAutoencoder, encode_frames, encoder_fingerprint
from fedtalk_ray.recipe import DecoderConfig
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.shards.people import People
from fedtalk_ray.training.phases.decoder import autoencoder_psnr, decoder_phase, random_frames


@pytest.fixture(scope="module")
def people(make_shards: Any, tmp_path_factory: pytest.TempPathFactory) -> People:
    folder: Path = tmp_path_factory.mktemp("decoder") / "shards"
    return People(folder, make_shards(folder, {"s1": [30, 30], "s2": [30, 30], "s3": [30, 30]}))


@pytest.fixture(scope="module")
def pieces(people: People) -> list[Piece]:
    return [piece for name in ("s1", "s2", "s3") for piece in people.pieces(name, "train")]


def new_autoencoder() -> PatchAutoencoder:
    torch.manual_seed(0)
    return PatchAutoencoder(luma_coefficients=1, chroma_coefficients=1, decoder_width=16).eval()


def test_the_decoder_gains_detail_and_the_latents_stay(pieces: list[Piece], all_rounds) -> None:
    autoencoder = new_autoencoder()
    check = random_frames(pieces, 8, np.random.default_rng(9))
    name, latents = encoder_fingerprint(autoencoder), encode_frames(autoencoder, check)
    before = autoencoder_psnr(autoencoder, check)
    phase = decoder_phase(autoencoder, DecoderConfig(rounds=2, steps=20, learning_rate=2e-3))
    frozen = phase.frozen()
    answers = all_rounds(phase, pieces, 2)
    assert autoencoder_psnr(autoencoder, check) > before + 0.5
    assert answers[1].losses["pixels"] < answers[0].losses["pixels"]
    assert encoder_fingerprint(autoencoder) == name and (encode_frames(autoencoder, check) == latents).all()
    assert phase.frozen() == frozen, "the encoder, which all clients have in common"
    assert not autoencoder.training and not any(parameter.requires_grad for parameter in autoencoder.parameters())


def test_the_decoder_alone_is_federated(pieces: list[Piece], make_task) -> None:
    autoencoder = new_autoencoder()
    phase = decoder_phase(autoencoder, DecoderConfig(steps=1))
    shared = phase.initial()
    assert len(shared) == sum(parameter.numel() for parameter in autoencoder.decoder.parameters())
    update = phase.fit(make_task(pieces, shared)).update
    assert update.dtype == np.float32 and (update != 0).mean() > 0.5
    assert phase.initial().tobytes() == shared.tobytes(), "what it learnt is in the update alone"
    phase.finish(shared + update)
    np.testing.assert_array_equal(phase.initial() - shared, update)


def test_a_client_trains_on_her_own_clips_alone(people: People, pieces: list[Piece], make_task) -> None:
    """By name among everybody's shards it is the same as with nothing but these clips."""
    phase = decoder_phase(new_autoencoder(), DecoderConfig(steps=2))
    shared = phase.initial()
    named = phase.fit(make_task(people, shared, client="s2")).update
    assert named.tobytes() == phase.fit(make_task([pieces[1]], shared)).update.tobytes()
    assert named.tobytes() != phase.fit(make_task(people, shared, client="s3")).update.tobytes()


def test_an_update_that_is_not_finite_does_not_leave_the_client(pieces: list[Piece], make_task) -> None:
    phase = decoder_phase(new_autoencoder(), DecoderConfig(steps=2))
    shared = phase.initial()
    shared[7] = np.inf
    with pytest.raises(TrainingError, match=r"not finite; lower decoder\.learning_rate"):
        phase.fit(make_task(pieces, shared))


def test_the_psnr_of_an_autoencoder_by_its_formula(pieces: list[Piece]) -> None:
    autoencoder = PatchAutoencoder(luma_coefficients=1, chroma_coefficients=1).eval()
    frames = pieces[0].frames[:3]
    means = frames.reshape(3, 8, 4, 8, 4, 3).astype(float).mean((2, 4)).repeat(4, 1).repeat(4, 2)
    expected = 10 * np.log10(255**2 / ((means.round() - frames) ** 2).mean())
    assert autoencoder_psnr(autoencoder, frames) == pytest.approx(expected, abs=0.01)
