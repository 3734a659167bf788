"""Reliability scores by hand: motion that agrees or not, faces that stay themselves, values that must not pass."""

import math

import numpy as np
import pytest
import torch

from fedtalk_ray.model.pipeline import make_critic
from fedtalk_ray.model.sampling import sample_clip
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.reliability import combine, motion_agreement, saturated, score_client


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
    with pytest.raises(
        ValueError, match=r"^the reliability score is no number in \[0, 1\]; [a-z ]+local\.learning_rate$"
    ):
        combine(id_sim, temp_stab, 0.5)


def test_a_negative_score_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^the reliability score is no number in \[0, 1\]; [a-z ]+local\.learning_rate$"
    ):
        combine(-0.1, 0.5, 1.0)


def clips(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 6, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_motion_like_the_truths_agrees_wherever_the_face_stands_and_however_far_it_moves() -> None:
    truth = clips()
    assert motion_agreement(truth, truth) == pytest.approx(1)
    assert motion_agreement(0.3 * truth + 5, truth) == pytest.approx(1)
    assert motion_agreement(-truth, truth) == pytest.approx(-1)


def test_agreement_is_numpys_correlation_of_the_mouth_around_each_cells_mean() -> None:
    made, true = clips(1) + 0.4 * clips(0) + 7, clips(0)
    rows, columns = slice(4, 7), slice(2, 6)  # of 8 cells: MOUTH_BOX is 0.54 to 0.92 down and 0.26 to 0.74 across
    flat = [x[..., rows, columns].numpy().astype(float).reshape(18, -1) for x in (made, true)]
    expected = np.corrcoef(*((x - x.mean(0)).ravel() for x in flat))[0, 1]
    assert motion_agreement(made, true) == pytest.approx(expected, abs=1e-6)


def test_what_moves_outside_the_mouth_does_not_count() -> None:
    made, true = clips(1), clips()
    before = motion_agreement(made, true)
    made[..., :4, :] = true[..., :4, :]
    assert motion_agreement(made, true) == before


def test_a_still_and_a_mouth_that_is_only_in_the_right_place_agree_with_nothing() -> None:
    truth = clips()
    assert motion_agreement(torch.zeros_like(truth), truth) == 0
    assert motion_agreement(truth.mean((0, 1), keepdim=True).expand_as(truth), truth) == pytest.approx(0, abs=1e-6)


def test_frames_out_of_order_agree_by_chance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = clips().cumsum(1)
    order = torch.randperm(18, generator=generator)
    shuffled = truth.flatten(0, 1)[order].unflatten(0, (3, 6))
    assert abs(motion_agreement(truth, shuffled)) < 0.3 < motion_agreement(truth, truth + clips(2))


@pytest.mark.parametrize(
    ("agreement", "score"), [(-0.5, 0), (0, 0), (0.12, 0.5), (0.24, 0.8), (0.36, 0.9), (1, 0.9858)]
)
def test_the_score_saturates(agreement: float, score: float) -> None:
    assert saturated(agreement) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_client_whose_face_never_moves_is_itself_and_frozen(make_pipeline, make_windows, alpha: float) -> None:
    """A network without any motion generates the reference: IDSim = 1 where that is the enrolled face, TempStab = 0."""
    pipeline = make_pipeline(awake=False)
    for parameter in pipeline.denoiser.speech_map.parameters():
        torch.nn.init.zeros_(parameter)
    windows = make_windows(1)
    found = score_client(
        pipeline.denoiser, pipeline.scheduler, windows, windows.reference, make_critic(pipeline), alpha, seed=0
    )
    assert found.id_sim == pytest.approx(1, abs=1e-5)
    assert found.temp_stab == 0
    assert found.score == pytest.approx(alpha, abs=1e-5)


def test_id_sim_is_the_mean_cosine_of_generated_frames_and_other_clips(make_pipeline, make_windows) -> None:
    pipeline, windows, enrolment = make_pipeline(), make_windows(2), make_windows(3, 9).reference
    critic = make_critic(pipeline)
    found = score_client(pipeline.denoiser, pipeline.scheduler, windows, enrolment, critic, 1.0, seed=5)
    generator = torch.Generator().manual_seed(5)
    similarities = []
    with torch.no_grad():
        enrolled = [critic.embed(frame[None])[0] for frame in enrolment]
        for speech, reference in zip(windows.speech, windows.reference, strict=True):
            clip = sample_clip(pipeline.denoiser, pipeline.scheduler, reference, speech, steps=1, generator=generator)
            similarities += [float(critic.embed(frame[None])[0] @ own) for frame in clip for own in enrolled]
    assert len(similarities) == 24
    assert found.score == found.id_sim == pytest.approx(max(0.0, sum(similarities) / 24), abs=1e-5)


def test_a_face_unlike_the_other_clips_scores_0_and_never_less(make_windows, make_pipeline) -> None:
    pipeline, windows = make_pipeline(), make_windows(2)

    class Critic:
        def embed(self, latents: torch.Tensor) -> torch.Tensor:
            """Generated frames one way, the two enrolled ones the other."""
            return torch.full((len(latents), 1), -1.0 if len(latents) == 2 else 1.0)

    found = score_client(pipeline.denoiser, pipeline.scheduler, windows, windows.reference, Critic(), 1.0, seed=0)
    assert found.score == found.id_sim == 0


def test_scores_are_repeatable_and_depend_on_nothing_outside(make_pipeline, make_windows) -> None:
    pipeline, windows = make_pipeline(), make_windows()
    parts = (pipeline.denoiser, pipeline.scheduler, windows, windows.reference, make_critic(pipeline), 0.5)
    found = []
    for outside in (0, 1):
        torch.manual_seed(outside)
        state = torch.get_rng_state()
        found.append(score_client(*parts, seed=3))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1] and 0 <= found[0].score <= 1


def test_without_an_identity_encoder_the_score_is_stability_alone(make_pipeline, make_windows) -> None:
    pipeline, windows = make_pipeline(identity=False), make_windows()
    found = score_client(pipeline.denoiser, pipeline.scheduler, windows, windows.reference, None, 0.9, seed=0)
    assert found.id_sim is None and found.score == found.temp_stab


def test_a_client_whose_model_broke_gets_no_score(make_pipeline, make_windows) -> None:
    pipeline, windows = make_pipeline(), make_windows()
    broken = WindowBatch(windows.latents, windows.speech * math.nan, windows.reference)
    with pytest.raises(ValueError, match=r"the reliability score is no number in \[0, 1\]"):
        score_client(
            pipeline.denoiser, pipeline.scheduler, broken, windows.reference, make_critic(pipeline), 0.5, seed=0
        )
