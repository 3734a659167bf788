"""Units and lip axes: means over clients are those of all clips as if they lay in one place."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import NothingToGive, ShardError, TrainingError
from fedtalk_ray.media.lips import MIRRORED
from fedtalk_ray.recipe import LARGEST_STATISTICS
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.phases.units import Units, moments, set_units

EMPTY = np.zeros(0)
BUFFERS = ("reference_mean", "reference_std", "residual_std", "lip_axes", "lip_mean", "lip_std")


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


def units_of(denoiser: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: denoiser.get_buffer(name).numpy().copy() for name in BUFFERS}


def test_moments_of_latents_by_hand() -> None:
    """Frames 0, 5, 10 and 15 count. Of values 1, 2, 3, 5 the sum is 11, of squares 39.

    Against the frame two further on: 1 - 3, 2 - 5, 3 - 1, 5 - 2, whose squares sum to 26.
    """
    latents = np.zeros((16, 1, 8, 8), np.float16)
    latents[::5] = np.array([1, 2, 3, 5])[:, None, None, None]
    vector = moments([Piece("s1", "a", 0, EMPTY, latents, EMPTY, EMPTY, landmarks=landmarks(16, 0))])
    assert vector.dtype == np.float64
    assert vector[:4].tolist() == [1, 11 / 4, 39 / 4, 26 / 4]


def test_moments_of_lips_by_hand() -> None:
    """Eyes 1 apart. Inner lips are 0 and 0.2 apart in turn, all three pairs, by the lower points alone (65, 66, 67).

    Apertures count tenfold: mean 1, mean of squares 2. The lower points move by 0.1 up and down of their mean, times
    a hundred and squared 100, and are each other's mirror image, so that all nine products of their heights are 100.
    """
    points = np.zeros((10, 68, 2), np.float32)
    points[:, 42:48, 0] = 1
    points[1::2, 65:68, 1] = 0.2
    latents = np.random.default_rng(0).normal(size=(10, 1, 8, 8)).astype(np.float16)
    vector = moments([Piece("s1", "a", 0, EMPTY, latents, EMPTY, EMPTY, landmarks=points)])
    assert vector[4:6] == pytest.approx([1, 2], rel=1e-5)
    products = np.zeros((40, 40))
    products[np.triu_indices(40)] = vector[6:]
    heights = [2 * (index - 48) + 1 for index in (65, 66, 67)]
    expected = np.zeros((40, 40))
    expected[np.ix_(heights, heights)] = 100
    np.testing.assert_allclose(products, np.triu(expected), atol=1e-3)


def test_the_clients_mean_gives_the_units_of_all_clips_together(everybody, mean, make_denoiser) -> None:
    denoiser = make_denoiser()
    set_units(denoiser, mean)
    frames = [each.latents[::5].astype(np.float64) for held in everybody for each in held]
    pooled = np.concatenate(frames)
    residuals = np.concatenate([part - np.roll(part, len(part) // 2, axis=0) for part in frames])
    np.testing.assert_allclose(denoiser.reference_mean, pooled.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(denoiser.reference_std, pooled.std((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(denoiser.residual_std, np.sqrt((residuals**2).mean((0, 2, 3))), rtol=1e-5)


def test_units_that_were_there_before_are_what_figures_are_counted_in(everybody, make_denoiser, all_rounds) -> None:
    """The figures are about 1 then, and the new units are those that a denoiser without any comes to."""
    known, unknown = make_denoiser(), make_denoiser()
    known.reference_mean.copy_(torch.tensor([1.0, 2, 3, 4]))
    known.reference_std.copy_(torch.tensor([2.0, 4, 6, 8]))
    known.residual_std.copy_(torch.tensor([3.0, 6, 8, 11]))
    seen = moments(everybody[2], known)[1:13].reshape(3, 4)
    assert np.abs(seen[0]).max() < 0.1 and np.abs(seen[1:] - 1).max() < 0.2
    for denoiser in (known, unknown):
        all_rounds(Units(denoiser), everybody[2])
    for name, values in units_of(unknown).items():
        np.testing.assert_allclose(units_of(known)[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


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


def test_a_fixed_denominator_or_a_client_that_stayed_away_changes_no_unit(mean, make_denoiser) -> None:
    whole, part = make_denoiser(), make_denoiser()
    set_units(whole, mean)
    set_units(part, (0.37 * mean).astype(np.float32))
    for name, values in units_of(whole).items():
        np.testing.assert_allclose(units_of(part)[name], values, rtol=2e-3, atol=1e-4, err_msg=name)


def first_of_the_largest(axis: np.ndarray) -> float:
    return next(number for number in axis if abs(number) > 0.99999 * np.abs(axis).max())


def test_what_open_mouths_show_changes_with_no_shape_of_other_axes(mean, make_denoiser) -> None:
    denoiser = make_denoiser(region="lower face", bends=(4, 2, 1), opens=True)
    denoiser.open_mouth.colours.fill_(0.1)
    set_units(denoiser, mean)
    assert (denoiser.open_mouth.colours[0] == 0.1).all() and not denoiser.open_mouth.colours[1:].any()


def test_axes_have_their_first_largest_number_positive_whatever_the_clips_order(everybody, make_denoiser) -> None:
    found = []
    for clips in (everybody[2], everybody[2][::-1]):
        denoiser = make_denoiser()
        set_units(denoiser, moments(clips))
        found.append(denoiser.lip_axes.numpy().copy())
        for axis in found[-1]:
            assert first_of_the_largest(axis) > 0 and np.linalg.norm(axis) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize("wider", (0, 12))
def test_rounding_decides_no_axis_sign_where_both_corners_move_alike(make_denoiser, mean, wider: int) -> None:
    """The corners of the mouth (points 0 and 6 of 20) draw apart by 0.01, one of them by a hair more."""
    apart = np.zeros(40)
    apart[[0, 12]] = -0.01, 0.01
    apart[wider] *= 1 + 4e-7
    vector = mean.copy()
    products = 1e4 * np.outer(apart, apart)[np.triu_indices(40)]
    vector[-len(products) :] = vector[0] * products
    denoiser = make_denoiser()
    set_units(denoiser, vector)
    assert denoiser.lip_axes[0][0] > 0.7
    assert denoiser.lip_axes[0][12] < -0.7


def test_a_round_answers_with_what_makes_the_vector_the_moments(everybody, make_denoiser, make_task, all_rounds):
    denoiser, alike = make_denoiser(), make_denoiser()
    phase = Units(denoiser)
    start = phase.initial()
    assert start.shape == (1 + 3 * 4 + 2 + 40 * 41 // 2,) and not start.any() and start.dtype == np.float32
    fitted = phase.fit(make_task(everybody[1], start))
    np.testing.assert_allclose(fitted.update, moments(everybody[1]), rtol=1e-6)
    assert fitted.update.dtype == np.float32 and fitted.losses == {} and fitted.identity is None
    all_rounds(phase, everybody[1])
    set_units(alike, moments(everybody[1]).astype(np.float32))
    assert all((units_of(denoiser)[name] == values).all() for name, values in units_of(alike).items())


def test_a_channel_that_never_changes_divides_by_nothing(make_denoiser) -> None:
    still = replace(piece(30), latents=np.full((30, 4, 8, 8), 3, np.float16))
    denoiser = make_denoiser()
    set_units(denoiser, moments([still]))
    for buffer in (denoiser.reference_std, denoiser.residual_std, denoiser.lip_std):
        assert torch.isfinite(1 / buffer).all() and (buffer > 0).all()


def test_moments_hold_as_many_numbers_for_one_clip_as_for_many() -> None:
    """The message that carries them cannot grow with the data."""
    for held in ([piece(30)], [piece(30), piece(200), piece(25)]):
        assert moments(held).shape == (1 + 3 * 4 + 2 + 820,)


def test_shards_without_landmarks_are_refused_in_one_line() -> None:
    old = replace(piece(30), landmarks=np.zeros((0, 68, 2), np.float32))
    with pytest.raises(ShardError, match=r"clip a of s1 has no landmarks: .* prepare them again") as caught:
        moments([piece(30), old])
    assert "\n" not in str(caught.value)


def test_lips_that_never_move_are_refused() -> None:
    still = replace(piece(30), landmarks=np.repeat(landmarks(1, 1), 30, axis=0))
    with pytest.raises(NothingToGive, match="its lips never move"):
        moments([still, replace(still, clip="b")])
    moments([still, piece(30)])


@pytest.mark.parametrize("column", ["latents", "landmarks"])
def test_what_cannot_be_read_is_refused(column: str) -> None:
    broken = piece(30)
    values = getattr(broken, column).copy()
    values[10, 50 if column == "landmarks" else 0] = np.nan
    with pytest.raises(NothingToGive, match="its lips or latents cannot be read: they hold values that are no numbers"):
        moments([piece(30), replace(broken, **{column: values})])


@pytest.mark.parametrize("share", [0.0, -0.1])
def test_statistics_that_cancel_out_are_refused(mean, make_denoiser, share: float) -> None:
    """Nobody answered, or the noise is larger than the answers."""
    with pytest.raises(TrainingError, match="the clients' statistics cancel out"):
        set_units(make_denoiser(), share * mean)


def lies(honest: np.ndarray, others: int) -> dict[str, np.ndarray]:
    """What a liar among so many others sends: a vector no longer than may be."""
    nothing = np.zeros_like(honest)
    share, residual, square, lips = nothing.copy(), honest.copy(), honest.copy(), honest.copy()
    share[0] = -LARGEST_STATISTICS
    almost = np.concatenate([[0.02 - others], 0 * honest[1:]])
    residual[9:13] = -(others + 1) * honest[9:13]
    square[5:9] = -(others + 1) * honest[5:9]
    lips[15:] = -(others + 1) * honest[15:]
    return {"share below 0": share, "share of nearly 0": almost, "residuals": residual, "squares": square, "lips": lips}


@pytest.mark.parametrize("lie", ["share below 0", "share of nearly 0", "residuals", "squares", "lips"])
def test_statistics_that_no_clips_have_are_refused(mean, make_denoiser, lie: str) -> None:
    """One client of eight set units to anything: all is divided by the 1 that it, too, writes, and what came out below
    0 was taken for nearly 0."""
    others, units = 7, Units(make_denoiser())
    liar = lies(mean, others)[lie]
    both = ((others * mean + liar) / (others + 1)).astype(np.float32)
    with pytest.raises(TrainingError, match="one that no clips have: a client sent other figures"):
        units.finish(both)
    units.finish(mean.astype(np.float32))


def test_of_noise_anything_is_taken(mean, make_denoiser) -> None:
    liar, denoiser = lies(mean, 7)["residuals"], make_denoiser()
    Units(denoiser, noisy=True).finish(((7 * mean + liar) / 8).astype(np.float32))
    np.testing.assert_allclose(denoiser.residual_std, 0.001, rtol=1e-3)


@pytest.mark.parametrize("lie", ["residuals", "squares", "both"])
def test_one_client_brings_no_channel_of_a_model_with_units_to_nothing(mean, make_denoiser, lie: str) -> None:
    """A liar of eight can send what some clips have: one channel that never changes. It came to a thousandth."""
    before = make_denoiser()
    set_units(before, mean)
    honest = moments([piece(60, 3)], before)
    liar = honest.copy()
    if lie != "squares":
        liar[9] = -7 * honest[9]
    if lie != "residuals":
        liar[5] = honest[1] ** 2 - 7 * (honest[5] - honest[1] ** 2)
    assert np.linalg.norm(liar) <= LARGEST_STATISTICS
    denoiser = make_denoiser()
    set_units(denoiser, mean)
    Units(denoiser).finish(((7 * honest + liar) / 8).astype(np.float32))
    old, new = units_of(before), units_of(denoiser)
    if lie != "squares":
        np.testing.assert_allclose(new["residual_std"][0], 0.2 * old["residual_std"][0], rtol=1e-3)
    if lie != "residuals":
        # Two frames of what hardly varies do not differ as these do: by two deviations at most, root mean square.
        least = 0.2 * old["reference_std"][0] if lie == "both" else new["residual_std"][0] / 2
        np.testing.assert_allclose(new["reference_std"][0], least, rtol=1e-3)
    for name in ("residual_std", "reference_std"):
        np.testing.assert_allclose(new[name][1:], old[name][1:], rtol=0.2)


@pytest.mark.parametrize("lie", ["aperture", "axes"])
def test_one_client_brings_no_deviation_of_lips_to_nothing(mean, make_denoiser, lie: str) -> None:
    """Of eight, with or without units before: lips whose aperture never changes, or that move along one axis alone.

    They came to a ten-thousandth, and true lips were told as thousands of deviations.
    """
    honest, liar = mean, mean.copy()
    if lie == "aperture":
        liar[14] = 8 * honest[13] ** 2 - 7 * honest[14]
    else:
        products = np.zeros((40, 40))
        products[np.triu_indices(40)] = honest[15:]
        values, vectors = np.linalg.eigh(products + np.triu(products, 1).T)
        first = values[-1] * np.outer(vectors[:, -1], vectors[:, -1])
        liar[15:] = 8 * first[np.triu_indices(40)] - 7 * honest[15:]
    denoiser = make_denoiser()
    Units(denoiser).finish(((7 * honest + liar) / 8).astype(np.float32))
    spread, before = units_of(denoiser)["lip_std"], make_denoiser()
    set_units(before, mean)
    if lie == "aperture":
        assert spread[0] == pytest.approx(0.02) and spread[1:] == pytest.approx(units_of(before)["lip_std"][1:])
    else:
        assert spread[2:] == pytest.approx(0.002) and spread[:2] == pytest.approx(units_of(before)["lip_std"][:2], 0.01)


def moving(seed: int) -> np.ndarray:
    """One client's moments, whose lips move along five axes as those of GRID do, each client's a little otherwise."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 5)))[0] + 0.03 * rng.normal(size=(40, 5))
    products = (axes * (np.array([20, 3.8, 1.5, 0.34, 0.23]) * rng.uniform(0.5, 1.5, 5))) @ axes.T
    honest = np.array([1.0, *np.zeros(4), *np.ones(8), 1, 1.3])
    return np.concatenate([honest, products[np.triu_indices(40)]])


def test_a_median_over_groups_is_taken_and_bears_a_liar(make_denoiser) -> None:
    """Value by value, it is what no clips give: runs with `strategy.groups` ended, and called honest clients liars."""
    clients = np.stack([moving(seed) for seed in range(1, 25)])
    groups = clients.reshape(3, 8, -1).mean(1)
    middle = np.median(groups, axis=0).astype(np.float32)
    with pytest.raises(TrainingError, match="one that no clips have"):
        Units(make_denoiser()).finish(middle)
    liar = np.random.default_rng(1).normal(size=groups.shape[1])
    groups[0] += LARGEST_STATISTICS / 8 * liar / np.linalg.norm(liar)
    products = np.zeros((40, 40))
    products[np.triu_indices(40)] = clients.mean(0)[15:]
    products += np.triu(products, 1).T
    lost = []
    for vector in (clients.mean(0), middle, groups[0], np.median(groups, axis=0)):
        denoiser = make_denoiser()
        Units(denoiser, noisy=True).finish(vector.astype(np.float32))
        axes = units_of(denoiser)["lip_axes"]
        lost.append(1 - np.trace(axes @ products @ axes.T) / np.trace(products))
    everybody, median, lied, outvoted = lost
    assert median < everybody + 0.01 and outvoted < everybody + 0.02 and lied > everybody + 0.05, lost


def test_groups_of_which_one_lies_bring_no_channel_to_nothing(make_denoiser) -> None:
    """Of a model without units: the medians of mean and of square are of different groups, and what they leave for the
    variance came to nothing where means differ (here by 0.3, about 5 deviations)."""
    rng, groups = np.random.default_rng(0), []
    for _ in range(3):
        means = 5 + 0.3 * rng.normal(size=8)
        vector = moving(1)
        vector[1:5], vector[5:9], vector[9:13] = means.mean(), 1 + (means**2).mean(), 2
        groups.append(vector)
    groups[0][1:5] += 3
    groups[0][5:9] -= 3
    median, denoiser = np.median(groups, axis=0), make_denoiser()
    assert (median[5:9] - median[1:5] ** 2 < 0.2).all(), "the lie is one"
    Units(denoiser, noisy=True).finish(median.astype(np.float32))
    np.testing.assert_allclose(units_of(denoiser)["reference_std"], 0.5**0.5, rtol=1e-3)
