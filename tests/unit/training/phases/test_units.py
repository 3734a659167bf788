"""Units and lip axes: means over clients are those of all clips as if they lay in one place."""

from dataclasses import replace

import numpy as np
import pytest

from fedtalk_ray.errors import NothingToGive, ShardError, TrainingError
from fedtalk_ray.media.lips import MIRRORED
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.phases.units import Units, moments, set_units

EMPTY = np.zeros(0)


def landmarks(frames: int, seed: int) -> np.ndarray:
    """68 points of each frame: eyes 0.4 apart, and a mouth that moves more in some directions than in others."""
    rng = np.random.default_rng(seed)
    points = np.tile(np.random.default_rng(0).uniform(0.3, 0.7, (68, 2)), (frames, 1, 1)) + 0.02 * seed
    points[:, 36:42, 0], points[:, 42:48, 0] = 0.3, 0.7
    patterns = np.random.default_rng(99).normal(size=(8, 20, 2))
    amounts = rng.normal(size=(frames, 8)) * 0.01 / np.arange(1, 9)
    points[:, 48:68] += np.einsum("tk,kpx->tpx", amounts, patterns)
    return points.astype(np.float32)


def piece(frames: int, seed: int = 0, channels: int = 4) -> Piece:
    rng = np.random.default_rng(seed)
    latents = rng.normal(1, 2, (frames, channels, 8, 8)) * np.arange(1, channels + 1)[:, None, None]
    points = landmarks(frames, seed)
    return Piece("s1", "a", 0, EMPTY, latents.astype(np.float16), EMPTY, EMPTY, landmarks=points)


def even(points: np.ndarray) -> np.ndarray:
    """Displacements of the mouth [T, 40] from the piece's mean, as the mean of a picture's and its mirror image's."""
    moved = points[:, 48:68].astype(float) - points[:, 48:68].astype(float).mean(0)
    mirrored = np.stack([-moved[:, MIRRORED, 0], moved[:, MIRRORED, 1]], axis=-1)
    return ((moved + mirrored) / 2).reshape(len(points), 40)


def aperture(points: np.ndarray) -> np.ndarray:
    gaps = [np.hypot(*(points[:, a] - points[:, b]).astype(float).T) for a, b in ((61, 67), (62, 66), (63, 65))]
    eyes = points[:, 36:42].astype(float).mean(1) - points[:, 42:48].astype(float).mean(1)
    return np.mean(gaps, axis=0) / np.hypot(*eyes.T)


@pytest.fixture(scope="module")
def everybody() -> list[list[Piece]]:
    """Three clients of one, two and four clips of unequal lengths; latents count in whole fives of frames."""
    lengths = iter((30, 45, 25, 60, 35, 50, 40))
    return [[piece(next(lengths), 10 * who + clip + 1) for clip in range(count)] for who, count in enumerate((1, 2, 4))]


@pytest.fixture(scope="module")
def mean(everybody: list[list[Piece]]) -> np.ndarray:
    """The clients' mean, each weighted by its frames."""
    frames = [sum(len(each.latents) for each in held) for held in everybody]
    return np.average([moments(held) for held in everybody], axis=0, weights=frames)


@pytest.fixture
def make_denoiser(make_denoiser):
    """Denoisers without units yet, as those of random weights are."""

    def make(**more):
        denoiser = make_denoiser(**more)
        denoiser.reference_mean.zero_()
        denoiser.reference_std.fill_(1)
        denoiser.residual_std.fill_(1)
        return denoiser

    return make


def test_the_clients_mean_gives_the_units_of_all_clips_together(everybody, mean, make_denoiser) -> None:
    denoiser = make_denoiser()
    set_units(denoiser, mean)
    frames = [each.latents[::5].astype(np.float64) for held in everybody for each in held]
    pooled = np.concatenate(frames)
    residuals = np.concatenate([part - np.roll(part, len(part) // 2, axis=0) for part in frames])
    np.testing.assert_allclose(denoiser.reference_mean, pooled.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(denoiser.reference_std, pooled.std((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(denoiser.residual_std, np.sqrt((residuals**2).mean((0, 2, 3))), rtol=1e-5)


def test_the_clients_mean_gives_the_lip_axes_of_all_clips_together(everybody, mean, make_denoiser) -> None:
    """Right singular vectors of all even displacements, and the deviations along them."""
    denoiser = make_denoiser()
    set_units(denoiser, mean)
    points = [each.landmarks for held in everybody for each in held]
    moved = np.concatenate([even(each) for each in points])
    axes = np.linalg.svd(moved, full_matrices=False)[2][:5]
    axes = np.array([axis * np.sign(first_of_the_largest(axis)) for axis in axes])
    np.testing.assert_allclose(denoiser.lip_axes, axes, atol=1e-4)
    gaps = np.concatenate([aperture(each) for each in points])
    np.testing.assert_allclose(denoiser.lip_mean, [gaps.mean(), *np.zeros(5)], rtol=1e-4)
    spread = np.sqrt(np.mean((moved @ axes.T) ** 2, axis=0))
    np.testing.assert_allclose(denoiser.lip_std, [gaps.std(), *spread], rtol=1e-3)
    assert denoiser.knows_lips() and not make_denoiser().knows_lips()


def first_of_the_largest(axis: np.ndarray) -> float:
    return next(number for number in axis if abs(number) > 0.99999 * np.abs(axis).max())


def test_a_round_answers_with_what_makes_the_vector_the_moments(everybody, make_denoiser, make_task) -> None:
    phase = Units(make_denoiser())
    start = phase.initial()
    assert start.shape == (1 + 3 * 4 + 2 + 40 * 41 // 2,) and not start.any() and start.dtype == np.float32
    fitted = phase.fit(make_task(everybody[1], start))
    np.testing.assert_allclose(fitted.update, moments(everybody[1]), rtol=1e-6)
    assert fitted.update.dtype == np.float32 and fitted.losses == {} and fitted.identity is None


LIES: dict[str, tuple[slice, float]] = {"share": (slice(0, 1), -18), "squares": (slice(5, 9), -8)}
LIES |= {"residuals": (slice(9, 13), -8), "lips": (slice(15, None), -8)}


@pytest.mark.parametrize("lie", LIES)
def test_statistics_that_no_clips_have_are_refused(mean, make_denoiser, lie: str) -> None:
    """One client of eight set units to anything: all is divided by the 1 that it, too, writes."""
    (place, times), liar = LIES[lie], mean.copy()
    liar[place] *= times
    both = ((7 * mean + liar) / 8).astype(np.float32)
    with pytest.raises(TrainingError, match="one that no clips have: a client sent other figures"):
        Units(make_denoiser()).finish(both)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"landmarks": np.zeros((0, 68, 2), np.float32)}, ShardError, "clip a of s1 has no landmarks"),
        ({"landmarks": np.repeat(landmarks(1, 1), 30, axis=0)}, NothingToGive, "its lips never move"),
        ({"latents": np.full((30, 4, 8, 8), np.nan, np.float16)}, NothingToGive, "values that are no numbers"),
    ],
)
def test_clips_that_say_nothing_are_refused(change: dict[str, np.ndarray], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        moments([replace(piece(30), **change)])
