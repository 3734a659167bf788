"""Reliability scores by hand: a frozen picture, a perfect one, flicker, and values that must not pass."""

import math

import pytest
import torch

from fedtalk_ray.data.windows import WindowBatch
from fedtalk_ray.model.pipeline import make_critic, sample_clip
from fedtalk_ray.training.reliability import combine, score_client, temporal_stability


@pytest.mark.parametrize(
    ("id_sim", "temp_stab", "alpha", "score"),
    [(0.9, 0.5, 0.5, 0.7), (0.9, 0.5, 1.0, 0.9), (0.9, 0.5, 0.0, 0.5), (0.8, 0.4, 0.25, 0.5), (None, 0.4, 0.9, 0.4)],
)
def test_the_score_by_hand(id_sim: float | None, temp_stab: float, alpha: float, score: float) -> None:
    combined = combine(id_sim, temp_stab, alpha)
    assert combined.score == pytest.approx(score)
    assert (combined.id_sim, combined.temp_stab) == (id_sim, temp_stab)


def test_rounding_above_1_is_cut_off() -> None:
    assert combine(1.00005, 1.00001, 0.5).score == 1.0


@pytest.mark.parametrize(("id_sim", "temp_stab"), [(math.nan, 0.5), (0.5, math.nan), (None, math.nan), (2.0, 0.9)])
def test_a_score_that_is_no_share_is_refused(id_sim: float | None, temp_stab: float) -> None:
    with pytest.raises(ValueError, match=r"reliability score is .*; it must lie in \[0, 1\]"):
        combine(id_sim, temp_stab, 0.5)


def test_a_negative_score_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reliability score is -0\.1"):
        combine(-0.1, 0.5, 1.0)


def clips(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 6, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_motion_like_the_truths_is_stability_1_wherever_the_face_stands() -> None:
    truth = clips()
    assert temporal_stability(truth, truth) == 1.0
    assert temporal_stability(truth + 3, truth) == pytest.approx(1.0, abs=1e-5)


def test_a_frozen_picture_has_stability_one_over_e() -> None:
    truth = clips()
    frozen = truth[:, :1].expand_as(truth)
    assert temporal_stability(frozen, truth) == pytest.approx(math.exp(-1), rel=1e-6)


def test_stability_by_hand() -> None:
    """Truth moves by 2 a frame, the generated face by 3: e = 1 / 2."""
    ticks = torch.arange(4.0)[None, :, None, None, None]
    assert temporal_stability(3 * ticks, 2 * ticks) == pytest.approx(math.exp(-0.5))


def test_stability_falls_with_flicker() -> None:
    truth, noise = clips(), clips(1)
    values = [temporal_stability(truth + size * noise, truth) for size in (0, 0.1, 0.5, 1, 2, 5)]
    assert values == sorted(values, reverse=True) and values[0] == 1 and 0 < values[-1] < 0.02


def test_flicker_over_a_truth_that_does_not_move_is_stability_0() -> None:
    still = torch.ones(1, 4, 1, 2, 2)
    assert temporal_stability(still, still) == 1.0
    assert temporal_stability(still + clips()[:1, :4, :1, :2, :2], still) == 0.0


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_client_whose_face_never_moves_is_itself_and_frozen(make_pipeline, make_windows, alpha: float) -> None:
    """A network without any motion generates the reference: IDSim = 1, TempStab = exp(-1)."""
    pipeline = make_pipeline(awake=False)
    for parameter in pipeline.denoiser.speech_map.parameters():
        torch.nn.init.zeros_(parameter)
    found = score_client(pipeline.denoiser, pipeline.scheduler, make_windows(3), make_critic(pipeline), alpha, seed=0)
    assert found.id_sim == pytest.approx(1, abs=1e-5)
    assert found.temp_stab == pytest.approx(math.exp(-1), abs=1e-5)
    assert found.score == pytest.approx(alpha + (1 - alpha) * math.exp(-1), abs=1e-5)


def test_id_sim_is_the_mean_cosine_of_generated_frames_and_reference_on_0_to_1(make_pipeline, make_windows) -> None:
    pipeline, windows = make_pipeline(), make_windows(2)
    critic = make_critic(pipeline)
    found = score_client(pipeline.denoiser, pipeline.scheduler, windows, critic, 1.0, seed=5)
    generator = torch.Generator().manual_seed(5)
    similarities = []
    with torch.no_grad():
        for speech, reference in zip(windows.speech, windows.reference, strict=True):
            clip = sample_clip(
                pipeline.denoiser, pipeline.scheduler, reference, speech, guidance=1.0, generator=generator
            )
            own = critic.embed(reference[None])[0]
            similarities += [float((1 + critic.embed(frame[None])[0] @ own) / 2) for frame in clip]
    assert len(similarities) == 8
    assert found.score == found.id_sim == pytest.approx(sum(similarities) / 8, abs=1e-5)
    assert 0 < found.id_sim < 1


def test_scores_are_repeatable_and_depend_on_nothing_outside(make_pipeline, make_windows) -> None:
    pipeline = make_pipeline()
    found = []
    for outside in (0, 1):
        torch.manual_seed(outside)
        state = torch.get_rng_state()
        found.append(
            score_client(pipeline.denoiser, pipeline.scheduler, make_windows(), make_critic(pipeline), 0.5, seed=3)
        )
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1] and 0 <= found[0].score <= 1


def test_without_an_identity_encoder_the_score_is_stability_alone(make_pipeline, make_windows) -> None:
    pipeline = make_pipeline(identity=False)
    found = score_client(pipeline.denoiser, pipeline.scheduler, make_windows(), None, 0.9, seed=0)
    assert found.id_sim is None and found.score == found.temp_stab


def test_a_client_whose_model_broke_gets_no_score(make_pipeline, make_windows) -> None:
    pipeline, windows = make_pipeline(), make_windows()
    broken = WindowBatch(windows.latents, windows.speech * math.nan, windows.reference)
    with pytest.raises(ValueError, match="reliability score is nan"):
        score_client(pipeline.denoiser, pipeline.scheduler, broken, make_critic(pipeline), 0.5, seed=0)
