"""Reliability scores by hand: motion that agrees or not, faces that stay themselves, values that must not pass."""

import math

import numpy as np
import pytest
import torch

from fedtalk_ray.media.lips import LIP_MOTION
from fedtalk_ray.model.pipeline import make_critic
from fedtalk_ray.model.sampling import sample_clip
from fedtalk_ray.training.reliability import (
    CHANCE_AGREEMENT,
    CHANCE_SIMILARITY,
    beyond_chance,
    combine,
    hearing_beyond_chance,
    saturated,
    score_client,
    score_hearing,
)


@pytest.mark.parametrize(
    ("id_sim", "temp_stab", "alpha", "score"),
    [(0.9, 0.5, 0.5, 0.7), (0.9, 0.5, 1.0, 0.9), (0.9, 0.5, 0.0, 0.5), (0.8, 0.4, 0.25, 0.5), (None, 0.4, 0.9, 0.4)],
)
def test_the_score_by_hand(id_sim: float | None, temp_stab: float, alpha: float, score: float) -> None:
    combined = combine(id_sim, temp_stab, alpha)
    assert combined.score == pytest.approx(score)
    assert (combined.id_sim, combined.temp_stab) == (id_sim, temp_stab)


@pytest.mark.parametrize(("id_sim", "temp_stab"), [(math.nan, 0.5), (0.5, math.nan), (None, -0.1), (2.0, 0.9)])
def test_a_score_that_is_no_share_is_refused(id_sim: float | None, temp_stab: float) -> None:
    with pytest.raises(ValueError, match=r"^the reliability score is no number in \[0, 1\]; .*local\.learning_rate$"):
        combine(id_sim, temp_stab, 0.5)
    assert combine(1.00005, 1.00001, 0.5).score == 1.0, "rounding is cut off"
    assert math.isnan(saturated(math.nan, 0.3))


def test_what_broke_gets_no_score(make_pipeline, make_windows) -> None:
    """Sound that is no number, and lips, whatever the generated motion says."""
    pipeline, unheard, unseen = make_pipeline(), make_windows(), make_windows(4)
    unheard.speech *= math.nan
    unseen.lips = torch.randn(4, unseen.latents.shape[1], LIP_MOTION)
    unseen.lips[1, 2] = math.nan
    for broken in (unheard, unseen):
        given = pipeline.denoiser, pipeline.scheduler, broken, broken.reference, None
        with pytest.raises(ValueError, match=r"the reliability score is no number in \[0, 1\]"):
            score_client(*given, 0.5, seed=0)


def motions(seed: int = 0, windows: int = 12, frames: int = 8, numbers: int = 5) -> torch.Tensor:
    """Smooth motions [B, T, F], no two alike."""
    return torch.randn(windows, frames, numbers, generator=torch.Generator().manual_seed(seed)).cumsum(1)


def by_hand(made: np.ndarray, true: np.ndarray) -> float:
    """How often agreement exceeds chance, in loops: every window around its mean, moved on by halves of windows."""
    windows, frames = made.shape[:2]
    made, true = ((x - x.mean(1, keepdims=True)).reshape(windows * frames, -1) for x in (made, true))

    def agreement(shift: int) -> float:
        return sum(float(made[at] @ true[(at + shift) % len(true)]) for at in range(len(made)))

    apart = [agreement(shift) for shift in range(frames // 2, len(made), frames // 2)]
    return agreement(0) / math.sqrt(sum(each * each for each in apart) / len(apart))


@pytest.mark.parametrize(("windows", "frames"), [(1, 8), (2, 4), (12, 8), (3, 5)])
def test_agreement_is_held_against_that_of_other_moments(windows: int, frames: int) -> None:
    true = motions(0, windows, frames)
    made = true + motions(1, windows, frames)
    assert beyond_chance(made, true) == pytest.approx(by_hand(made.double().numpy(), true.double().numpy()), rel=1e-9)


def test_how_far_and_from_where_something_moves_is_no_agreement() -> None:
    true = motions()
    made = true + motions(1)
    before = beyond_chance(made, true)
    assert beyond_chance(0.1 * made + motions(2)[:, :1], true + 3) == pytest.approx(before, rel=1e-4)
    assert beyond_chance(-made, true) == pytest.approx(-before, rel=1e-6)
    assert beyond_chance(torch.zeros_like(true), true) == 0 == beyond_chance(true, torch.ones_like(true))
    # Windows that stand somewhere else each, and never move, as clips of other days do.
    assert beyond_chance(motions(3)[:, :1].expand_as(true), true) == 0


def test_what_is_heard_counts_where_the_lips_are_known(make_denoiser, make_windows) -> None:
    """The speech encoder's first numbers against the true shapes."""
    denoiser = make_denoiser(lip_numbers=3)
    windows = make_windows(6)
    with torch.no_grad():
        denoiser.lip_axes.copy_(torch.randn(denoiser.lip_axes.shape, generator=torch.Generator().manual_seed(0)))
        code = denoiser.speech_encoder(windows.speech)[..., :3]
        axes = torch.cat([torch.zeros(2, 1), denoiser.lip_axes], dim=1)
        first = torch.zeros(1, LIP_MOTION).index_fill(1, torch.tensor([0]), 1.0)
        windows.lips = code @ torch.linalg.pinv(torch.cat([first, axes])).T
    expected = by_hand(code.double().numpy(), code.double().numpy())
    assert hearing_beyond_chance(denoiser, windows) == pytest.approx(expected, rel=1e-2)
    heard = score_hearing(denoiser, windows, 0.5)
    assert heard.score == pytest.approx(0.5 + 0.5 * saturated(expected, CHANCE_AGREEMENT), abs=1e-3)
    windows.lips = windows.lips.flip(0).flip(1)
    assert score_hearing(denoiser, windows, 0.5).score < heard.score


@pytest.mark.parametrize(("value", "score"), [(-0.5, 0), (0, 0), (0.15, 1 / 17), (0.3, 0.5), (0.6, 16 / 17)])
def test_the_score_saturates(value: float, score: float) -> None:
    assert saturated(value, 0.3) == pytest.approx(score)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_client_whose_face_never_moves_is_itself_and_frozen(make_pipeline, make_windows, alpha: float) -> None:
    """Without any motion the reference is generated: a cosine of 1 where that is the enrolled face, and TempStab 0."""
    pipeline = make_pipeline(awake=False)
    for parameter in pipeline.denoiser.speech_map.parameters():
        torch.nn.init.zeros_(parameter)
    windows = make_windows(1)
    found = score_client(
        pipeline.denoiser, pipeline.scheduler, windows, windows.reference, make_critic(pipeline), alpha, seed=0
    )
    itself = saturated(1.0, CHANCE_SIMILARITY)
    assert found.id_sim == pytest.approx(itself, abs=1e-5)
    assert found.temp_stab == 0
    assert found.score == pytest.approx(alpha * itself, abs=1e-5)


def test_id_sim_is_by_the_mean_cosine_of_generated_frames_and_other_clips(make_pipeline, make_windows) -> None:
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
    assert found.score == found.id_sim
    assert found.id_sim == pytest.approx(saturated(sum(similarities) / 24, CHANCE_SIMILARITY), abs=1e-5)


def test_without_an_identity_encoder_the_score_is_stability_alone(make_pipeline, make_windows) -> None:
    pipeline, windows = make_pipeline(identity=False), make_windows()
    found = score_client(pipeline.denoiser, pipeline.scheduler, windows, windows.reference, None, 0.9, seed=0)
    assert found.id_sim is None and found.score == found.temp_stab
