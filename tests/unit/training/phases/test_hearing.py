"""Hearing in closed form: what clients say of sound and lips sums up to what the centre would learn, whoever lies."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import TrainingError
from fedtalk_ray.media.lips import lip_motion
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.own_hearing import OWN_FRAMES, own_hearing
from fedtalk_ray.training.phases.hearing import (
    Hearing,
    products,
)

EMPTY = np.zeros(0)
HOPS, BINS = 22, 12
FEATURES, LIPS = 3 * BINS, 6


def piece(frames: int, seed: int, loud: float = 1.0) -> Piece:
    """Sound of which the first feature, in the middle of a window, says how far the mouth is open; the sixth is large,
    as some of an encoder's are, and two say the same."""
    rng = np.random.default_rng(seed)
    speech = rng.normal(0, 1, (frames, HOPS, BINS)) * loud
    speech[..., 5] = 2 + 2 * speech[..., 5]
    speech[..., 7] = speech[..., 6]
    points = np.tile(np.random.default_rng(0).uniform(0.3, 0.7, (68, 2)), (frames, 1, 1))
    points[:, 36:42, 0], points[:, 42:48, 0] = 0.3, 0.7
    opened = 0.05 + 0.02 * speech[:, 10:12, 0].mean(1) + 0.003 * rng.normal(size=frames)
    points[:, 61:64, 0], points[:, 65:68, 0] = (0.47, 0.5, 0.53), (0.53, 0.5, 0.47)
    points[:, 61:64, 1], points[:, 65:68, 1] = 0.5, 0.5 + opened[:, None].clip(0)
    points[:, 55:60, 1] = 0.55 + opened[:, None].clip(0)
    return Piece("s1", f"clip{seed}", 0, EMPTY, EMPTY, speech.astype(np.float16), EMPTY, landmarks=points.astype("f4"))


CLIENTS = {"a": [piece(65, 1)], "b": [piece(60, 2), piece(80, 3)], "c": [piece(75, 4 + n) for n in range(5)]}


@pytest.fixture
def hearer(make_denoiser: Callable[..., TalkingHeadDenoiser]) -> TalkingHeadDenoiser:
    """A denoiser that bends its reference and hears linearly, with lip axes of its own and the clients' deviations."""
    ears = {"speech_hops": HOPS, "mel_bins": BINS, "speech": "whisper", "linear_hearing": True}
    denoiser = make_denoiser(bends=(4, 2, 1), region="lower face", **ears)
    torch.nn.init.normal_(denoiser.lip_axes, std=0.2, generator=torch.Generator().manual_seed(0))
    moved = [torch.from_numpy(lip_motion(p.landmarks)) for held in CLIENTS.values() for p in held]
    numbers = denoiser.lip_shape(torch.cat(moved))
    denoiser.lip_mean[0] = numbers[:, 0].mean()
    denoiser.lip_std.copy_(numbers.std(0))
    return denoiser


def pooled(hearer: TalkingHeadDenoiser, pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Features [T, F] by the module's own words, worked out here, and true shapes [T, L]."""
    steps = np.arange(HOPS) - 10.5
    rows = np.stack([np.exp(-(((steps - c) / w) ** 2) / 2) for c, w in ((-4.5, 3), (0, 1), (4.5, 3))])
    rows = rows / rows.sum(1, keepdims=True) * np.sqrt(8 / BINS)
    heard = [np.einsum("sh,thd->tsd", rows, p.speech.astype(float)).reshape(len(p.speech), -1) for p in pieces]
    shapes = [hearer.lip_shape(torch.from_numpy(lip_motion(p.landmarks))).numpy() for p in pieces]
    return np.concatenate(heard), np.concatenate(shapes).astype(float)


def ridge(features: np.ndarray, shapes: np.ndarray, cost: float) -> Callable[[np.ndarray], np.ndarray]:
    """By least squares on rows that stand for what weights cost."""
    middle, mean = features.mean(0), shapes.mean(0)
    count, width = features.shape
    rows = np.concatenate([(features - middle) / np.sqrt(count), np.sqrt(cost) * np.eye(width)])
    wanted = np.concatenate([(shapes - mean) / np.sqrt(count), np.zeros((width, shapes.shape[1]))])
    weights = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return lambda each: (each - middle) @ weights + mean


def test_a_federation_hears_what_the_centre_would(hearer: TalkingHeadDenoiser, make_task) -> None:
    """Clients of 65, 140 and 375 frames, of whom each counts by its frames, and one ridge regression over them all."""
    phase = Hearing(hearer, 0.5, by_frames=True)
    vectors = [phase.fit(make_task(held, phase.initial())).update for held in CLIENTS.values()]
    phase.finish(np.mean(vectors, 0, dtype=np.float64).astype(np.float32))
    features, shapes = pooled(hearer, [p for held in CLIENTS.values() for p in held])
    expected = ridge(features, shapes, 0.5 * features.var(0).mean())(features)

    with torch.no_grad():
        sound = np.concatenate([p.speech for held in CLIENTS.values() for p in held])
        code = hearer.speech_encoder(torch.from_numpy(sound.astype(np.float32))[None])[0].numpy()

    assert np.abs(code[:, :LIPS] - expected).max() < 0.01 * expected.std()
    assert not code[:, LIPS:].any()


def test_a_client_that_sends_other_figures_than_its_own_is_noticed(hearer: TalkingHeadDenoiser, make_task) -> None:
    phase, before = Hearing(hearer, 0.5, by_frames=True), hearer.speech_encoder.linear1.weight.clone()
    much = phase.fit(make_task(CLIENTS["a"], phase.initial())).update
    nobody, much[1:] = np.zeros_like(much), 9 * much[1:]
    for lied, message in ((much, "other figures"), (nobody, "cancel out: nobody answered")):
        with pytest.raises(TrainingError, match=message):
            phase.finish(lied)
    assert torch.equal(hearer.speech_encoder.linear1.weight, before)


def test_a_persons_own_hearing_is_what_her_lips_do_beyond_everybodys(hearer: TalkingHeadDenoiser) -> None:
    """Client b opens her mouth further than those by whom everybody's map was learned, and lower in it."""
    hers = [wider(each) for each in CLIENTS["b"]]
    Hearing(hearer, 0.5, by_frames=False).finish(products(CLIENTS["c"], hearer)[0].astype(np.float32))
    features, shapes = pooled(hearer, hers)
    sound = torch.from_numpy(np.concatenate([each.speech for each in hers]).astype(np.float32))
    with torch.no_grad():
        before = hearer.speech_encoder(sound[None])[0, :, :LIPS].numpy()
    own = own_hearing(hers, hearer)
    cost = OWN_FRAMES / len(features) * features.var(0).mean()
    expected = ridge(features, shapes - before, cost)(features)
    assert features @ own.weight.numpy().T + own.bias.numpy() == pytest.approx(expected, abs=2e-3)


def wider(given: Piece) -> Piece:
    """The same words with the lower lip further down, by half of how far lips are apart and a little."""
    points = given.landmarks.copy()
    points[:, 65:68, 1] += 0.5 * (points[:, 65:68, 1] - points[:, 61:64, 1][:, ::-1]) + 0.02
    return replace(given, landmarks=points)
