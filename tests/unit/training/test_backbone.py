"""Where a run starts: a pretrained pipeline that fits the shards, or a new one whose units the clients fix together."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import ShardError
from fedtalk_ray.messages import StatisticsUpdate
from fedtalk_ray.model.autoencoder import PatchAutoencoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, new_pipeline
from fedtalk_ray.shards.format import Piece, load_manifest
from fedtalk_ray.training.backbone import build_pipeline, check_fits, set_statistics, statistics_of, untrained_pipeline

EMPTY = np.zeros(0)


def piece(frames: int, seed: int = 0, channels: int = 4) -> Piece:
    rng = np.random.default_rng(seed)
    latents = rng.normal(1, 2, (frames, channels, 8, 8)) * np.arange(1, channels + 1)[:, None, None]
    return Piece("s1", "a", 0, EMPTY, latents.astype(np.float16), EMPTY, EMPTY)


def test_statistics_by_hand() -> None:
    """Frames 0, 5, 10 and 15 count. Of values 1, 2, 3, 5 the sum is 11, of squares 39.

    Against the frame two further on: 1 - 3, 2 - 5, 3 - 1, 5 - 2, whose squares sum to 26. All times 64 cells.
    """
    latents = np.zeros((16, 1, 8, 8), np.float16)
    latents[::5] = np.array([1, 2, 3, 5])[:, None, None, None]
    sums = statistics_of([Piece("s1", "a", 0, EMPTY, latents, EMPTY, EMPTY)])
    assert sums.dtype == np.float64
    assert sums.tolist() == [4 * 64, 11 * 64, 39 * 64, 26 * 64]


def test_sums_over_clients_are_the_statistics_of_everybody() -> None:
    everybody = [piece(30, 1), piece(47, 2), piece(25, 3)]
    parts = statistics_of(everybody[:1]) + statistics_of(everybody[1:])
    np.testing.assert_allclose(parts, statistics_of(everybody), rtol=1e-12)


def test_units_set_from_sums_are_those_of_the_pooled_latents(make_denoiser) -> None:
    pieces = [piece(60, seed) for seed in range(4)]
    denoiser = make_denoiser()
    set_statistics(denoiser, statistics_of(pieces))
    frames = [p.latents[::5].astype(np.float64) for p in pieces]
    pooled = np.concatenate(frames)
    residuals = np.concatenate([part - np.roll(part, len(part) // 2, axis=0) for part in frames])
    np.testing.assert_allclose(denoiser.reference_mean, pooled.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(denoiser.reference_std, pooled.std((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(denoiser.residual_std, np.sqrt((residuals**2).mean((0, 2, 3))), rtol=1e-5)


def test_a_channel_that_never_changes_divides_by_nothing(make_denoiser) -> None:
    still = Piece("s1", "a", 0, EMPTY, np.full((30, 4, 8, 8), 3, np.float16), EMPTY, EMPTY)
    denoiser = make_denoiser()
    set_statistics(denoiser, statistics_of([still]))
    for buffer in (denoiser.reference_std, denoiser.residual_std):
        assert torch.isfinite(1 / buffer).all()


def test_statistics_hold_as_many_numbers_for_one_clip_as_for_many() -> None:
    """The message that carries them cannot grow with the data (`messages.StatisticsUpdate`)."""
    for pieces in ([piece(30)], [piece(30), piece(200), piece(25)]):
        assert StatisticsUpdate(statistics_of(pieces)).sums.shape == (1 + 3 * 4,)


def test_a_run_without_pretraining_starts_from_its_seed(make_shards, tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "shards", {"s1": [30, 30]})
    built = []
    for outside, seed in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(outside)
        state = torch.get_rng_state()
        built.append(build_pipeline(None, seed, manifest))
        assert torch.equal(torch.get_rng_state(), state)
    config = built[0].denoiser.config
    assert (config.latent_channels, config.latent_size) == (16, 8) and built[0].frame_size() == 32
    assert built[0].identity_encoder is None
    weights = [pipeline.denoiser.conv_in.weight for pipeline in built]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_pretrained_pipeline_is_loaded_and_must_fit_the_shards(make_shards, tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", {"s1": [30, 30]})
    manifest = load_manifest(tmp_path / "shards")
    torch.manual_seed(5)
    pipeline = new_pipeline("patch", 16, 8)
    pipeline.save_pretrained(str(tmp_path / "fits"))
    loaded = build_pipeline(str(tmp_path / "fits"), 0, manifest)
    assert torch.equal(loaded.denoiser.conv_in.weight, pipeline.denoiser.conv_in.weight)

    other = TalkingHeadPipeline(PatchAutoencoder(luma_coefficients=11), pipeline.denoiser, pipeline.scheduler)
    other.save_pretrained(str(tmp_path / "other"))
    with pytest.raises(
        ShardError, match=rf"shards were encoded by autoencoder 'patch' .*{tmp_path / 'other'}"
    ) as caught:
        build_pipeline(str(tmp_path / "other"), 0, manifest)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speech": "models/whisper-tiny"}, "with --speech log-mel, but here was trained with models/whisper-tiny"),
        ({"identity": "dlib", "identity_dimensions": 128}, "with --identity none, but here was trained with dlib"),
        ({"speech_hops": 20}, "hold sound windows of 44 x 40, but here hears 20 x 40"),
    ],
)
def test_shards_that_a_pipeline_was_not_made_for_are_refused(make_shards, tmp_path, settings, message: str) -> None:
    make_shards(tmp_path / "shards", {"s1": [30, 30]})
    manifest = load_manifest(tmp_path / "shards")
    check_fits(manifest, untrained_pipeline(manifest), "here")
    with pytest.raises(ShardError, match=message) as caught:
        check_fits(manifest, untrained_pipeline(manifest, **settings), "here")
    assert "\n" not in str(caught.value)


def test_shards_of_another_frame_size_are_refused(make_shards, tmp_path) -> None:
    make_shards(tmp_path / "shards", {"s1": [30, 30]})
    with pytest.raises(ShardError, match=r"hold faces of 32 pixels \(8 latent cells a side\), but here makes 16 cells"):
        check_fits(load_manifest(tmp_path / "shards"), new_pipeline("patch", 16, 16), "here")
