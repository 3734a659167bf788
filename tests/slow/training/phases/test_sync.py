"""Training the sync network: right and wrong pairs are what they should be, and it learns to tell them apart."""

from dataclasses import replace
from math import exp, log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import NothingToGive
from fedtalk_ray.model.autoencoder import encode_frames, frames_to_pixels, load_autoencoder
from fedtalk_ray.model.sync import SyncNetwork
from fedtalk_ray.recipe import SyncConfig
from fedtalk_ray.shards.format import Piece, load_manifest
from fedtalk_ray.shards.reader import read_pieces
from fedtalk_ray.training.phases.module_steps import ModuleSteps
from fedtalk_ray.training.phases.sync import (
    FRAMES,
    SyncAccuracy,
    pair_loss,
    sync_accuracy,
    sync_phase,
    vary_clips,
)


def new_network(seed: int = 0) -> SyncNetwork:
    torch.manual_seed(seed)
    return SyncNetwork(latent_size=8, width=16, dimensions=16).eval()


def phase_of(network: SyncNetwork, rounds: int = 1, steps: int = 2, rate: float = 1e-3) -> ModuleSteps:
    return sync_phase(network, load_autoencoder("patch"), SyncConfig(rounds=rounds, steps=steps, learning_rate=rate))


@pytest.fixture(scope="module")
def splits(make_shards, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Piece], list[Piece]]:
    """12 clips to train on and 6 others; the picture's contrast follows the loudness."""
    folder: Path = tmp_path_factory.mktemp("sync") / "shards"
    make_shards(folder, {name: [40] * 6 for name in ("s1", "s2", "s3")})
    manifest = load_manifest(folder)
    train, val, test = (
        [piece for name in manifest.clients() for piece in read_pieces(folder, manifest, name, split)]
        for split in ("train", "val", "test")
    )
    return train, val + test


@pytest.fixture(scope="module")
def trained(splits: tuple[list[Piece], list[Piece]], all_rounds: Any) -> SyncNetwork:
    """In the units of what it is trained on, as the phase `units` fixes them before."""
    network = new_network()
    moved = np.concatenate([piece.latents.astype(float) - piece.latents[:1] for piece in splits[0]])
    network.residual_std.copy_(torch.from_numpy(np.sqrt((moved**2).mean((0, 2, 3)))))
    all_rounds(phase_of(network, 3, 16, 3e-3), splits[0], 3)
    return network


def test_held_out_clips_are_told_apart_after_training(splits, trained: SyncNetwork) -> None:
    before, after = (sync_accuracy(network, splits[1]) for network in (new_network(), trained))
    assert before.pairwise == pytest.approx(0.5, abs=0.1)
    assert after.pairwise > 0.75 and after.within_1 >= max(0.8, before.within_1 + 0.3)
    assert not trained.training
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def flat(network: SyncNetwork) -> torch.Tensor:
    return torch.cat([value.flatten() for value in network.parameters()])


def test_the_units_stay_what_they_were(splits, all_rounds) -> None:
    """The latents' units are fixed before this phase; what is federated are the weights, and what is frozen units."""
    network = new_network()
    network.residual_std.copy_(torch.linspace(0.5, 2, 16))
    phase = phase_of(network)
    assert len(phase.initial()) == sum(parameter.numel() for parameter in network.parameters())
    frozen = phase.frozen()
    all_rounds(phase, splits[0])
    assert torch.equal(network.residual_std, torch.linspace(0.5, 2, 16)) and phase.frozen() == frozen
    network.residual_std[0] = 9
    assert phase.frozen() != frozen


def test_the_loss_of_pairs_is_worked_out_by_hand() -> None:
    """Three stretches of one window, the first two of one clip. Log-odds 2 * cosine - 1.

    The first two are `gap` frames apart: at 2 they are no pair at all, at 3 a wrong one.
    """
    network: Any = SimpleNamespace(scale=2.0, bias=-1.0)
    mouth = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.6, 0.8]]])
    sound = torch.tensor([[[1.0, 0.0]], [[0.6, 0.8]], [[0.0, 1.0]]])
    cosines = np.array([[1, 0.6, 0], [0, 0.8, 1], [0.6, 1, 0.8]])
    odds = 2 * cosines - 1
    for gap, own in ((2, []), (3, [(0, 1), (1, 0)])):
        others = [(0, 2), (2, 0), (1, 2), (2, 1)]
        contrast = 0.0
        for right in range(3):
            across = [b for a, b in own + others if a == right]
            down = [a for a, b in own + others if b == right]
            contrast += log(sum(exp(odds[right, wrong]) for wrong in (right, *across))) - odds[right, right]
            contrast += log(sum(exp(odds[wrong, right]) for wrong in (right, *down))) - odds[right, right]
        in_step = np.mean([log(1 + exp(-odds[right, right])) for right in range(3)])
        kinds = [np.mean([log(1 + exp(odds[pair])) for pair in kind]) for kind in (own, others) if kind]
        expected = contrast / 6 + in_step + np.mean(kinds)
        loss = pair_loss(network, mouth, sound, torch.tensor([4, 4, 7]), torch.tensor([10, 10 + gap, 10]))
        assert float(loss) == pytest.approx(expected, abs=1e-5), gap


def test_one_clip_is_enough_and_shorter_ones_are_left_out(splits, all_rounds) -> None:
    piece = splits[0][0]
    short = replace(piece, latents=piece.latents[: FRAMES - 1], speech=piece.speech[: FRAMES - 1])
    network = new_network()
    all_rounds(phase_of(network), [short, piece])
    assert torch.isfinite(flat(network)).all()
    with pytest.raises(NothingToGive, match="all its clips are shorter than the 15 frames"):
        all_rounds(phase_of(network), [short])
    with pytest.raises(NothingToGive, match="all its clips are shorter than the 15 frames"):
        all_rounds(phase_of(network), [])


def test_accuracy_counts_what_it_says(splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three clips of 12 windows, found 1 off, 2 off and not at all.

    A mouth fits every wrong sound by 0.5, and its own by 1, but by 0 in the first window. Sounds d windows away make
    2 * (12 - d) pairs; for d from 5 to 11 that is 56, of which the first window's 7 are lost.
    """
    offsets = iter([-1, 2, None])
    monkeypatch.setattr("fedtalk_ray.training.phases.sync.find_offset", lambda *_: (next(offsets), np.zeros(11)))
    table = torch.full((12, 12), 0.5) + 0.5 * torch.eye(12)
    table[0, 0] = 0
    network: Any = SimpleNamespace(embed_mouth=lambda *_: table[None], embed_speech=lambda _: torch.eye(12)[None])
    assert sync_accuracy(network, splits[1][:3]) == SyncAccuracy(1 / 3, 2 / 3, 49 / 56)


def test_varied_clips_are_the_same_clips_seen_differently(splits, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder, pieces = load_autoencoder("patch"), splits[0][:2]
    copies = vary_clips(pieces, autoencoder, np.random.default_rng(0))
    for piece, copy in zip(pieces, copies, strict=True):
        assert (copy.client, copy.clip, copy.begin) == (piece.client, piece.clip, piece.begin)
        assert copy.speech is piece.speech and copy.frames is piece.frames
        assert copy.latents.shape == piece.latents.shape and copy.latents.dtype == np.float16
        assert np.abs(copy.latents.astype(float) - piece.latents).mean() > 0.01
    monkeypatch.setattr(
        "fedtalk_ray.training.phases.sync.View.of_pictures", lambda _, frames: frames_to_pixels(frames).flip(3)
    )
    mirrored = vary_clips(pieces, autoencoder, np.random.default_rng(0))
    expected = encode_frames(autoencoder, pieces[0].frames[:, :, ::-1])
    np.testing.assert_allclose(mirrored[0].latents, expected, atol=2e-3)
