"""From updates to a sum in the ring and back: the weighted mean without noise, the stated noise with it."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.errors import ConfigError
from fedtalk_ray.privacy.accounting import Noise
from fedtalk_ray.privacy.fixed_point import to_integers, to_ring
from fedtalk_ray.privacy.noise import system_rng
from fedtalk_ray.privacy.protocol import Aborted, Code, Limits
from fedtalk_ray.privacy.update_codec import EXTRA, UpdateCodec
from fedtalk_ray.settings import PrivacyConfig
from tests.unit.privacy.conftest import aborts

SIGMAS = 5.5


def codec_of(
    dimension: int, cohort: int, multiplier: float = 0.0, largest: int | None = None, **privacy: Any
) -> UpdateCodec:
    """A codec, with noise where a mechanism is named."""
    if privacy.get("mechanism", "none") == "none":
        privacy.pop("mechanism", None)
    else:
        privacy = {"noise_multiplier": multiplier, "clip_norm": 1.0} | privacy
    return UpdateCodec(PrivacyConfig(**privacy), multiplier, dimension, cohort, Limits(), largest)


def updates_of(clients: int, dimension: int, norm: float = 1.0, seed: int = 0) -> np.ndarray:
    """float32 [clients, dimension]: random directions with norms up to `norm`."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(clients, dimension))
    vectors *= (norm * rng.uniform(0.05, 1, clients) / np.linalg.norm(vectors, axis=1))[:, None]
    return vectors.astype(np.float32)


def encoded(
    codec: UpdateCodec, updates: np.ndarray, weights: Any, clip_norm: float, cohort: int | None = None, seed: int = 0
) -> np.ndarray:
    """uint32 [clients, D + 2]: what each client would mask."""
    rng = np.random.default_rng([seed, 1])
    return np.stack(
        [
            codec.encode(update, float(weight), clip_norm, cohort or len(updates), rng)
            for update, weight in zip(updates, np.broadcast_to(weights, len(updates)), strict=True)
        ]
    )


def summed(vectors: np.ndarray) -> np.ndarray:
    """The opened sum, modulo 2^32."""
    return vectors.sum(axis=0, dtype=np.uint32)


def weights_like(kind: str, clients: int, seed: int) -> np.ndarray:
    """omega_k as clients compute it: frames over the cap (FedAvg), times exp(-gamma (1 - s_k)) (ISFA)."""
    rng = np.random.default_rng([seed, 2])
    samples = np.minimum(rng.integers(200, 15_000, clients), 10_000) / 10_000
    return samples if kind == "fedavg" else samples * np.exp(-2.0 * (1 - rng.uniform(0, 1, clients)))


@settings(max_examples=15, deadline=None)
@given(
    clients=st.integers(8, 24),
    dimension=st.integers(300, 600),
    kind=st.sampled_from(["fedavg", "isfa"]),
    bits=st.sampled_from([None, 12, 18]),
    clip_norm=st.sampled_from([10.0, 1.5]),
    seed=st.integers(0, 1000),
)
def test_without_noise_the_sum_opens_to_the_weighted_mean(
    clients: int, dimension: int, kind: str, bits: int | None, clip_norm: float, seed: int
) -> None:
    codec = codec_of(dimension, cohort=24, scale_bits=bits)
    updates, weights = updates_of(clients, dimension, seed=seed), weights_like(kind, clients, seed)
    opened = codec.decode(summed(encoded(codec, updates, weights, clip_norm)), clients, clients, clip_norm)
    exact = np.average(updates.astype(np.float64), axis=0, weights=weights)
    error = np.linalg.norm(opened.update - exact)
    bound = codec.error_bound(clients, weights.sum(), clip_norm)
    assert bound / 1000 < error <= bound
    assert opened.update.dtype == np.float32 and opened.update.shape == (dimension,)
    assert opened.unclipped == 1.0


def test_a_single_coarse_step_by_hand() -> None:
    """C (n / scale) (sqrt(D) / zoom + n / W) / (W - n / scale): 8 clients, D = 100, zoom 2, scale 2^8, W = 4, C = 2."""
    codec = codec_of(100, cohort=8, scale_bits=8)
    assert (codec.scale, codec.zoom) == (256, 2)
    assert codec.error_bound(8, 4.0, 2.0) == pytest.approx(2 / 32 * (10 / 2 + 2) / (4 - 1 / 32))


@pytest.mark.parametrize("clipped", [0, 5, 8])
def test_without_noise_the_clipped_are_counted_exactly(clipped: int) -> None:
    codec = codec_of(50, cohort=8)
    updates = np.eye(8, 50, dtype=np.float32)
    updates[:clipped] *= 3
    opened = codec.decode(summed(encoded(codec, updates, 0.5, 1.0)), 8, 8, 1.0)
    assert opened.unclipped == 1 - clipped / 8
    np.testing.assert_allclose(opened.update[:8], np.full(8, 0.5 / 4), atol=codec.error_bound(8, 4.0, 1.0))


def test_the_vector_is_the_update_a_weight_and_a_bit() -> None:
    codec = codec_of(3, cohort=8)
    assert codec.length == 3 + EXTRA == 5
    vector = codec.encode(np.array([0.5, -0.25, 0], np.float32), 0.5, 1.0, 8, np.random.default_rng(0))
    assert vector.dtype == np.uint32
    assert (vector.astype(np.int32) / codec.scale).tolist() == [0.25, -0.125, 0, 0.5, 0]


def test_dropouts_leave_the_survivors_mean() -> None:
    codec = codec_of(400, cohort=12)
    updates, weights = updates_of(12, 400), weights_like("isfa", 12, 0)
    vectors = encoded(codec, updates, weights, 10.0)
    survivors = [11, 10, 9, 8, 7, 6, 5, 4]
    opened = codec.decode(summed(vectors[survivors]), len(survivors), 12, 10.0)
    exact = np.average(updates[survivors].astype(np.float64), axis=0, weights=weights[survivors])
    assert np.linalg.norm(opened.update - exact) <= codec.error_bound(len(survivors), weights[survivors].sum(), 10)
    with pytest.raises(Aborted, match="all weights are zero") as refused:
        codec.decode(summed(encoded(codec, updates, 0.0, 10.0)), 12, 12, 10.0)
    assert refused.value.code == Code.TOO_FEW


@pytest.mark.parametrize(("survivors", "colluders"), [(24, 0), (17, 0), (20, 4)])
def test_skellam_noise_in_a_sum_is_as_the_formula_says(survivors: int, colluders: int) -> None:
    """Every client adds (z S)^2 / (17 - colluders); 24 clients, of whom 17 must survive. D = 20,000 tells 3%."""
    dimension, multiplier, clip_norm, mean_weight = 20_000, 1.3, 0.5, 0.4
    more: dict[str, Any] = {"colluders": colluders, "mean_weight": mean_weight, "clip_norm": clip_norm}
    codec = codec_of(dimension, 24, multiplier, mechanism="skellam", **more)
    updates, weights = updates_of(survivors, dimension, norm=2.0), weights_like("isfa", survivors, 0)
    total = summed(encoded(codec, updates, weights, clip_norm, cohort=24, seed=survivors))
    opened = codec.decode(total, survivors, 24, clip_norm)

    weighted = updates * weights[:, None].astype(np.float64)
    clipped = weighted * np.minimum(1, clip_norm / np.linalg.norm(weighted, axis=1))[:, None]
    noise = opened.update - clipped.sum(0) / (24 * mean_weight)
    in_steps = noise * 24 * mean_weight / clip_norm * codec.scale
    expected = survivors * (multiplier * codec.sensitivity) ** 2 / (17 - colluders)
    assert in_steps.var() == pytest.approx(expected, rel=SIGMAS * math.sqrt(2 / dimension))
    assert abs(in_steps.mean()) < SIGMAS * math.sqrt(expected / dimension)
    assert expected * (survivors - colluders) / survivors >= (multiplier * codec.sensitivity) ** 2 * (1 - 1e-9)
    assert opened.unclipped is None


def test_gaussian_noise_is_added_once_whoever_drops_out() -> None:
    """The clients add none and send no weight, the server adds z S to the sum."""
    survivors, dimension, multiplier, clip_norm, mean_weight = 17, 20_000, 1.3, 0.5, 0.4
    codec = codec_of(dimension, 24, multiplier, mechanism="gaussian", mean_weight=mean_weight, clip_norm=clip_norm)
    updates = updates_of(survivors, dimension, norm=clip_norm)
    vectors = encoded(codec, updates, 1.0, clip_norm, cohort=24)
    assert (vectors[:, -EXTRA:] == 0).all()
    sent = vectors.astype(np.int32)[:, :dimension] / codec.scale
    assert np.abs(sent - updates / clip_norm).max() < 1 / codec.scale * (1 + 1e-6)

    opened = codec.decode(summed(vectors), survivors, 24, clip_norm)
    noise = opened.update - updates.sum(0, dtype=np.float64) / (24 * mean_weight)
    in_units = noise * 24 * mean_weight / clip_norm
    assert in_units.std() == pytest.approx(multiplier, rel=SIGMAS * math.sqrt(1 / (2 * dimension)) + 0.001)
    assert opened.unclipped is None
    assert not np.array_equal(opened.update, codec.decode(summed(vectors), survivors, 24, clip_norm).update)


@pytest.mark.parametrize(("score", "frames", "most"), [(0.5, 75, 0.01), (0.0, 300, 0.1)])
def test_tiny_weights_do_not_lose_an_update_to_rounding(score: float, frames: int, most: float) -> None:
    """B4: ISFA as it is by default, gamma 8 and C 30, and updates of norm 0.32: the report tells the error."""
    dimension, clients, norm = 100_000, 16, 30.0
    codec = codec_of(dimension, clients)
    rng = np.random.default_rng(0)
    updates = rng.normal(size=dimension) + 0.3 * rng.normal(size=(clients, dimension))
    updates = (0.32 * updates / np.linalg.norm(updates, axis=1)[:, None]).astype(np.float32)
    weight = frames * math.exp(8 * (score - 1)) / 10_000
    opened = codec.decode(summed(encoded(codec, updates, weight, norm)), clients, clients, norm)
    mean = updates.mean(0, dtype=np.float64)
    error = float(np.linalg.norm(opened.update - mean))
    assert error < most * np.linalg.norm(mean)
    assert opened.rounding_error is not None
    assert error / np.linalg.norm(mean) < opened.rounding_error < 4 * error / np.linalg.norm(mean)
    assert error < codec.error_bound(clients, clients * weight, norm)
    assert opened.unclipped == pytest.approx(1.0, abs=1e-6)


def test_an_update_that_lies_in_one_value_is_scaled_down_as_a_whole() -> None:
    """So that finer steps can make no sum wrap around."""
    codec = codec_of(100_000, 8)
    updates = np.zeros((8, 100_000), np.float32)
    updates[:, 7] = 10.0
    opened = codec.decode(summed(encoded(codec, updates, 1.0, 10.0)), 8, 8, 10.0)
    assert opened.update[7] == pytest.approx(10.0 / codec.zoom, rel=1e-3) and codec.zoom == 64
    assert np.abs(np.delete(opened.update, 7)).max() == 0 and opened.unclipped == pytest.approx(0.0, abs=1e-6)


def test_the_accountant_is_told_the_sensitivity_in_steps() -> None:
    """The two extra values count as values."""
    for mechanism in ("skellam", "gaussian"):
        codec = codec_of(1_000_000, 64, 1.3, mechanism=mechanism)
        assert codec.noise == Noise(mechanism, 1.3, codec.sensitivity, 1_000_002)
        assert 1 < codec.sensitivity / 2**18 < 1.0005
    assert codec_of(10, 64).noise is None


@pytest.mark.parametrize("mechanism", ["skellam", "gaussian"])
@pytest.mark.parametrize("clipping", ["fixed", "adaptive"])
def test_no_client_moves_the_sum_by_more_than_the_sensitivity(mechanism: str, clipping: str) -> None:
    """The largest update there is, encoded by a client of next to no noise."""
    codec = codec_of(3000, 64, 1e-9, mechanism=mechanism, clipping=clipping)
    for seed in range(5):
        update = np.random.default_rng(seed).normal(size=3000).astype(np.float32) * 1e6
        vector = codec.encode(update, 1e3, 1.0, 64, np.random.default_rng(seed)).astype(np.int32)
        assert 0.999 * codec.scale < np.linalg.norm(vector) <= codec.sensitivity


@pytest.mark.parametrize("mechanism", ["skellam", "gaussian"])
def test_the_noisy_count_of_the_clipped_is_right_on_average(mechanism: str) -> None:
    """48 of 64 below the clip norm; the share's noise is a twentieth, for Skellam sqrt(64 / 43) of that."""
    codec = codec_of(4, 64, 1.3, mechanism=mechanism, clipping="adaptive")
    updates = np.zeros((64, 4), np.float32)
    updates[:16, 0] = 5.0
    rounds = 60
    shares = [
        codec.decode(summed(encoded(codec, updates, 1.0, 1.0, seed=seed)), 64, 64, 1.0).unclipped
        for seed in range(rounds)
    ]
    deviation = 0.05 * (math.sqrt(64 / 43) if mechanism == "skellam" else 1)
    assert np.mean(shares) == pytest.approx(0.75, abs=SIGMAS * deviation / math.sqrt(rounds))
    assert np.std(shares) == pytest.approx(deviation, rel=SIGMAS / math.sqrt(2 * rounds))


@pytest.mark.parametrize("mechanism", ["none", "gaussian"])
@pytest.mark.parametrize("at", ["one value", "all values"])
def test_a_client_that_is_twenty_times_too_long_is_caught(mechanism: str, at: str) -> None:
    """It bypassed its own clip: the sum's norm lies beyond 8 honest ones', and beyond the noise."""
    codec = codec_of(1000, 8, 0.1, mechanism=mechanism)
    updates = updates_of(8, 1000)
    vectors = encoded(codec, updates, 1.0, 1.0)
    assert codec.decode(summed(vectors), 8, 8, 1.0).update.shape == (1000,)
    direction = np.eye(1, 1000)[0] if at == "one value" else updates[0] / np.linalg.norm(updates[0])
    length = 20 * codec.zoom if at == "all values" else 20
    cheat = to_ring(to_integers(length * direction, codec.scale, np.random.default_rng(0)))
    vectors[0, :1000] = cheat
    with aborts(Code.SUM_TOO_LARGE):
        codec.decode(summed(vectors), 8, 8, 1.0)


@pytest.mark.parametrize("mechanism", ["none", "skellam", "gaussian"])
def test_honest_sums_are_never_refused(mechanism: str) -> None:
    """Everybody clipped, in directions of their own."""
    for seed in range(5):
        codec = codec_of(200, 16, 1.0, mechanism=mechanism)
        vectors = encoded(codec, updates_of(16, 200, norm=1000.0, seed=seed), 1.0, 1.0, seed=seed)
        assert np.isfinite(codec.decode(summed(vectors), 16, 16, 1.0).update).all()


@pytest.mark.parametrize("mechanism", ["skellam", "gaussian"])
def test_a_simulated_cohort_has_the_larger_ones_noise_relative_to_the_mean(mechanism: str) -> None:
    """16 clients in the place of 256 have a sixteenth of the noise in their sum, and z is booked as it stands."""
    dimension, multiplier = 20_000, 2.0
    simulated = {"mechanism": mechanism, "simulated_cohort": 256, "simulated_population": 1024}
    thin = codec_of(dimension, 16, multiplier, **simulated)
    opened = thin.decode(summed(encoded(thin, np.zeros((16, dimension)), 1.0, 1.0)), 16, 16, 1.0)
    excess = math.sqrt(16 / 11) if mechanism == "skellam" else 1.0
    assert opened.update.std() == pytest.approx(multiplier / 256 * excess, rel=0.025)
    assert thin.noise is not None and thin.noise.multiplier == multiplier
    if mechanism == "gaussian":
        thin = codec_of(4, 16, 2.0, clipping="adaptive", **simulated)
        total = summed(encoded(thin, np.zeros((16, 4), np.float32), 1.0, 1.0))
        shares = [thin.decode(total, 16, 16, 1.0).unclipped for _ in range(300)]
        assert np.mean(shares) == pytest.approx(1.0, abs=5.5 * 0.05 / math.sqrt(300))
        assert np.std(shares) == pytest.approx(0.05, rel=5.5 / math.sqrt(600)), "of the count of the clipped too"


def test_of_all_cohorts_that_may_come_the_worst_decides_whether_there_is_noise_enough() -> None:
    """Of 101 clients, on a sparse graph, a liar opens sums over 50; of a hundred over 67."""
    assert [Limits().opened(count) for count in (8, 100, 101, 200)] == [8, 67, 50, 100]
    assert Limits(100).opened(128) == 64
    assert codec_of(10, 200, 1.0, mechanism="skellam", colluders=49)
    with pytest.raises(ConfigError, match=r"scale_bits is 30: .* could reach 8 \* 2\^30, beyond 2\^31; lower it"):
        codec_of(10, cohort=8, scale_bits=30)
    with pytest.raises(ConfigError, match="colluders is 50, and a sum of 50 clients may be opened"):
        codec_of(10, 200, 1.0, mechanism="skellam", colluders=50)


@pytest.mark.parametrize(
    ("cohort", "multiplier", "bits", "fits"),
    [
        (64, 1.3, 25, False),  # 64 + 8 * 1.3 * sqrt(64 / 43) = 76.7, and 2^31 / 2^25 = 64
        (4000, 8.0, 19, True),  # 4000 + 8 * 8 * sqrt(4000 / 2000) = 4090.5, and 2^31 / 2^19 = 4096
        (4000, 9.0, 19, False),  # 4101.8
        (8192, 1.3, 18, False),
    ],
)
def test_a_configuration_whose_sums_could_wrap_is_refused(
    cohort: int, multiplier: float, bits: int, fits: bool
) -> None:
    def make() -> UpdateCodec:
        return codec_of(1000, cohort, multiplier, mechanism="skellam", scale_bits=bits)

    if fits:
        assert make().scale == 2.0**bits
    else:
        with pytest.raises(ConfigError, match=f"privacy.scale_bits is {bits}: a sum over {cohort} clients"):
            make()


def test_the_largest_cohort_that_may_come_decides_about_the_range_and_nothing_else() -> None:
    """Poisson cohorts vary: sums of 2 * 64 must fit, but noise and bit are those for the 64 that are expected."""
    with pytest.raises(ConfigError, match="a sum over 128 clients"):
        codec_of(1000, 64, 1.3, mechanism="skellam", scale_bits=24, largest=128)
    simulated = {"mechanism": "gaussian", "clipping": "adaptive", "simulated_cohort": 256, "simulated_population": 999}
    usual, roomy = codec_of(20_000, 16, 2.0, **simulated), codec_of(20_000, 16, 2.0, largest=32, **simulated)
    assert (roomy.scale, roomy.sensitivity) == (usual.scale, usual.sensitivity)
    assert roomy.with_noise(np.zeros(20_000), 1.0).std() == pytest.approx(2.0 / 256, rel=0.04)
    skellam = codec_of(100, 16, 2.0, mechanism="skellam", mean_weight=0.5)
    assert (skellam.with_noise(np.full(100, 2.5), 3.0) == 0.9375).all(), "C sum / (16 mean_weight): noise came with it"
    assert codec_of(10, 16, largest=32).scale == codec_of(10, 32).scale < codec_of(10, 16).scale


@pytest.mark.parametrize("mechanism", ["none", "skellam", "gaussian"])
def test_what_is_not_finite_never_leaves_the_client(mechanism: str) -> None:
    codec = codec_of(3, 8, 1.0, mechanism=mechanism)
    for bad, weight in ((math.nan, 1), (math.inf, 1), (1e300, 1), (0.5, math.nan), (0.5, math.inf), (0.5, -1)):
        with aborts(Code.NOT_FINITE), np.errstate(over="ignore"):
            codec.encode(np.array([0.1, bad, 0.2]), float(weight), 1.0, 8, np.random.default_rng(0))


def test_noise_that_numpy_cannot_make_is_refused_before_the_run() -> None:
    config = PrivacyConfig(mechanism="skellam", noise_multiplier=4.3, clip_norm=1)
    with pytest.raises(ConfigError, match=r"scale_bits is 18: noise of multiplier 4\.3 .* take 17 or less"):
        UpdateCodec(config, 4.3, 100, 8, Limits(8))
    coarser = config.model_copy(update={"scale_bits": 17})
    UpdateCodec(coarser, 4.3, 100, 8, Limits(8)).encode(np.zeros(100, np.float32), 1.0, 1.0, 8, system_rng())
