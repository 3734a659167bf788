"""The decoder gains detail; the latents that shards hold stay valid."""

import numpy as np
import torch

from fedtalk_ray.model.autoencoder import PatchAutoencoder, encode_frames, encoder_fingerprint
from fedtalk_ray.recipe import DecoderConfig
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.phases.decoder import autoencoder_psnr, decoder_phase, random_frames


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
