"""Calibration: what is shown of a prediction is what predictions turned out to be worth on other clips."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import NothingToGive, TrainingError
from fedtalk_ray.media.lips import aperture_of
from fedtalk_ray.model import adapters
from fedtalk_ray.model.autoencoder import decode_latents, decode_pixels, encode_frames
from fedtalk_ray.model.motion_units import mouth_blend
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, new_pipeline
from fedtalk_ray.model.sampling import sample_clip
from fedtalk_ray.model.told import Told
from fedtalk_ray.recipe import LARGEST_STATISTICS
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.phases.calibration import (
    FACTORS_TRIED,
    LEAST_CERTAINTY,
    MAX_LIVELINESS,
    MOST_CLIPS,
    Calibration,
    Prediction,
    affordable,
    chosen,
    lacking_and_lost,
    nearness,
    predict,
)
from tests.unit.training.phases.known_predictions import SIDE, Known, clips

MAPS = ("certainty", "liveliness", "detail")


@pytest.fixture
def calibrate(all_rounds: Callable[..., Any], predicts: Known) -> Callable[..., list[Piece]]:
    """All three rounds, of one client whose clips have these residuals, and are predicted so."""

    def run(
        pipeline: TalkingHeadPipeline,
        truth: list[torch.Tensor],
        means: list[torch.Tensor],
        samples: list[torch.Tensor] | None = None,
    ) -> list[Piece]:
        pieces = clips(pipeline, truth)
        predicts(pieces, means, samples or means)
        all_rounds(Calibration(pipeline, 0), pieces, 3)
        return pieces

    return run


def test_the_mean_is_shrunk_to_what_it_is_worth(make_pipeline, calibrate) -> None:
    """Truth = share * mean + something that has nothing to do with it: least squares finds the share of each cell."""
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    means = [torch.randn(60, 4, SIDE, SIDE, generator=generator) for _ in range(4)]
    share = torch.tensor([0.9, 0.6, 0.2, -0.5]).repeat_interleave(2)[:, None].expand(SIDE, SIDE)  # by rows
    truth = [share * mean + 0.3 * torch.randn(mean.shape, generator=generator) for mean in means]
    for residual in truth:
        residual[0] = 0  # the reference itself
    calibrate(pipeline, truth, means)
    certainty = pipeline.denoiser.certainty
    # Neighbours are averaged, so only cells amid their equals come out as they went in; the mirror image is too.
    padded = torch.cat([share[:1], share, share[-1:]])
    expected = ((padded[:-2] + padded[1:-1] + padded[2:]) / 3).clamp(0, 1)
    # Frames of one kind want no other factor; one that moves a little more costs them next to nothing.
    ratio = certainty[:3] / expected[:3]
    assert 0.95 < ratio.mean() < 1.15 and ratio.std() < 0.03
    assert torch.allclose(certainty[7], torch.zeros(())), "not the contrary of what was predicted"
    assert torch.allclose(certainty, certainty.flip(1))


def test_caution_is_for_what_most_frames_want(make_pipeline, calibrate) -> None:
    """Nine frames of ten want 0.7 of the mean, one, five times as large, wants all of it.

    Least squares say (9 * 0.7 + 25) / (9 + 25) = 0.92; of the factors tried 0.8 comes nearest to 0.7 / 0.92.
    """
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    large = (torch.arange(60) % 10 == 9)[:, None, None, None]
    means = [torch.randn(60, 4, SIDE, SIDE, generator=generator) * torch.where(large, 1.0, 0.2) for _ in range(4)]
    truth = [torch.where(large, 1.0, 0.7) * mean for mean in means]
    for residual in truth:
        residual[0] = 0
    calibrate(pipeline, truth, means)
    assert torch.allclose(pipeline.denoiser.certainty, torch.tensor(0.8 * 0.92), atol=0.03)


def test_of_two_cautions_that_are_nearly_as_good_the_one_that_moves_more_is_taken(make_pipeline) -> None:
    """A twentieth of what is predicted is right, the rest of the truth is noise: no factor costs anything."""
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    means = [torch.randn(60, 4, SIDE, SIDE, generator=generator) for _ in range(4)]
    truth = [torch.randn(mean.shape, generator=generator) + 0.05 * mean for mean in means]
    spoken = [
        Prediction(piece.frames[0], torch.from_numpy(piece.latents[:1]), piece.frames, true, mean, mean, 0 * mean)
        for piece, true, mean in zip(clips(pipeline, truth), truth, means, strict=True)
    ]
    reached = nearness(pipeline, spoken, torch.full((SIDE, SIDE), 0.05))
    assert (chosen(reached, SIDE) == FACTORS_TRIED[-1]).all()


def test_faces_move_as_much_as_real_ones_and_the_mouth_is_the_mean_alone(make_pipeline, calibrate) -> None:
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    still = [torch.zeros(60, 4, SIDE, SIDE) for _ in range(3)]
    samples = [torch.randn(60, 4, SIDE, SIDE, generator=generator) for _ in still]
    wanted = torch.tensor([0.5] * 4 + [3.0] * 4)[:, None]  # the lower half moves more than samples may
    truth = [wanted * torch.randn(each.shape, generator=generator) for each in samples]
    calibrate(pipeline, truth, still, samples)
    lively, outside = pipeline.denoiser.liveliness, 1 - mouth_blend(SIDE)
    assert torch.allclose(lively[:3], 0.5 * outside[:3], atol=0.03)
    assert torch.allclose(lively[5:], MAX_LIVELINESS * outside[5:])
    assert lively[5, 4] == 0


def test_who_moves_much_does_not_make_the_others_tremble(make_pipeline, calibrate) -> None:
    """Five still people and one who moves six times as much: a sample's energy over the truth's is 1 on average."""
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    still = [torch.zeros(60, 4, SIDE, SIDE) for _ in range(6)]
    samples = [torch.randn(60, 4, SIDE, SIDE, generator=generator) for _ in still]
    amounts = [0.5] * 5 + [3.0]
    truth = [amount * torch.randn(60, 4, SIDE, SIDE, generator=generator) for amount in amounts]
    calibrate(pipeline, truth, still, samples)
    expected = (6 / sum(1 / amount**2 for amount in amounts)) ** 0.5  # 0.55; of the summed energies it were 1.31
    assert torch.allclose(pipeline.denoiser.liveliness[:3], torch.tensor(expected), atol=0.05)


def test_detail_comes_back_where_the_face_keeps_still(make_pipeline, predicts, all_rounds) -> None:
    """True frames hold all that the autoencoder loses of the reference, in the upper half of the picture only."""
    pipeline = make_pipeline()
    still = [torch.zeros(10, 4, SIDE, SIDE) for _ in range(4)]
    pieces = clips(pipeline, still)
    for piece in pieces:
        piece.frames[:, : 2 * SIDE] = piece.frames[0, : 2 * SIDE]
    predicts(pieces, still, still)
    all_rounds(Calibration(pipeline, 0), pieces, 3)
    detail = pipeline.denoiser.detail
    assert torch.allclose(detail[:3], torch.ones(3, SIDE), atol=0.05)
    # Below, only the first of ten frames holds it: a tenth of it is the best guess.
    assert torch.allclose(detail[5:], torch.full((3, SIDE), 0.1), atol=0.05)
    audio = np.zeros(6400, np.float32)
    pipeline.denoiser.certainty.zero_()
    pipeline.denoiser.liveliness.zero_()
    made = pipeline(pieces[0].frames[0], audio).frames
    assert np.abs(made[:, : 2 * SIDE - 8].astype(int) - pieces[0].frames[0, : 2 * SIDE - 8]).max() <= 4
    pipeline.denoiser.detail.zero_()
    plain = pipeline(pieces[0].frames[0], audio).frames
    assert np.abs(plain[:, : 2 * SIDE - 8].astype(int) - pieces[0].frames[0, : 2 * SIDE - 8]).max() > 40


def test_of_many_or_large_pictures_only_some_are_decoded(
    make_pipeline, calibrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four clips of 60 frames, pixels for 23: five of each clip, once for each factor and once for the detail."""
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    means = [torch.randn(60, 4, SIDE, SIDE, generator=generator) for _ in range(4)]
    truth = [0.6 * mean for mean in means]
    for residual in truth:
        residual[0] = 0
    decoded = []

    def decode(autoencoder: torch.nn.Module, latents: torch.Tensor, *face: torch.Tensor, **bent: None) -> Any:
        decoded.append(len(latents))
        return decode_pixels(autoencoder, latents, *face, **bent)

    monkeypatch.setattr("fedtalk_ray.training.phases.calibration.decode_pixels", decode)
    monkeypatch.setattr("fedtalk_ray.training.phases.calibration.MAX_PIXELS", 23 * (4 * SIDE) ** 2)
    calibrate(pipeline, truth, means)
    assert decoded == [5] * 4 * (len(FACTORS_TRIED) + 1)
    # All frames say 0.6 but the first, so fewer of them say the same.
    assert torch.allclose(pipeline.denoiser.certainty, torch.tensor(0.6), atol=0.02)


def test_a_clip_gives_fifteen_frames_at_most() -> None:
    def clip(frames: int) -> Prediction:
        numbers = torch.arange(frames)
        return Prediction(np.zeros((8, 8, 3), np.uint8), numbers[:0], numbers.numpy(), *[numbers] * 4)

    assert [len(each.frames) for each in affordable([clip(75), clip(16), clip(15), clip(4)])] == [15, 15, 15, 4]
    assert affordable([]) == []


@pytest.mark.parametrize(("frames", "count", "kept"), [(10, 5, [1, 3, 5, 7, 9]), (10, 1, [5]), (3, 8, [0, 1, 2])])
def test_fewer_frames_are_taken_evenly(frames: int, count: int, kept: list[int]) -> None:
    numbers = torch.arange(frames)
    every = Prediction(np.zeros(0), numbers[:0], numbers.numpy(), *[numbers] * 4, places=numbers).fewer(count)
    parts = every.frames, every.truth, every.mean, every.sample, every.motion, every.places
    assert all(part.tolist() == kept for part in parts)


def test_it_is_saved_with_the_weights(make_pipeline, tmp_path: Path) -> None:
    pipeline = make_pipeline()
    for buffer in (pipeline.denoiser.certainty, pipeline.denoiser.liveliness, pipeline.denoiser.detail):
        buffer.uniform_()
    pipeline.denoiser.save_pretrained(tmp_path)
    loaded = type(pipeline.denoiser).from_pretrained(tmp_path)
    for name in MAPS:
        assert torch.equal(getattr(loaded, name), getattr(pipeline.denoiser, name))


def test_a_network_that_predicts_noise_has_no_mean_to_calibrate(make_pipeline, all_rounds) -> None:
    pipeline = make_pipeline(prediction_type="epsilon")
    answers = all_rounds(Calibration(pipeline, 0), clips(pipeline, [torch.zeros(6, 4, SIDE, SIDE)]), 3)
    assert not any(answer.update.any() for answer in answers)
    assert (pipeline.denoiser.certainty == 1).all() and (pipeline.denoiser.detail == 0).all()


def three_rounds(
    pipeline: TalkingHeadPipeline, clients: list[list[Piece]], make_task: Callable[..., Any], denominator: float = 1.0
) -> dict[str, torch.Tensor]:
    """The maps after three rounds of these clients, each weighted by its clips, over a share of all weights."""
    phase = Calibration(pipeline, 0, noisy=denominator != 1)
    shared, weights = phase.initial(), np.array([len(held) for held in clients])
    for number in (1, 2, 3):
        updates = [phase.fit(make_task(held, shared, number, 3)).update for held in clients]
        shared = shared + (np.average(updates, axis=0, weights=weights) / denominator).astype(np.float32)
    phase.finish(shared)
    return {name: pipeline.denoiser.get_buffer(name).clone() for name in MAPS}


@pytest.fixture
def lively(make_pipeline, predicts) -> tuple[TalkingHeadPipeline, list[Piece]]:
    """Four clips that are each predicted differently well, and keep differently much of their detail."""
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    means = [0.5 * torch.randn(20, 4, SIDE, SIDE, generator=generator) for _ in range(4)]
    samples = [mean + 0.5 * torch.randn(mean.shape, generator=generator) for mean in means]
    shares = (0.9, 0.7, 0.4, 0.8)
    truth = [
        share * mean + 0.4 * torch.randn(mean.shape, generator=generator)
        for share, mean in zip(shares, means, strict=True)
    ]
    for residual in truth:
        residual[0] = 0
    pieces = clips(pipeline, truth)
    for still, piece in zip((2, 6, 10, 14), pieces, strict=True):
        piece.frames[:still] = piece.frames[0]  # the detail that the autoencoder loses
    predicts(pieces, means, samples)
    return pipeline, pieces


def test_two_clients_give_what_one_with_all_their_clips_gives(lively, make_task) -> None:
    pipeline, pieces = lively
    one = three_rounds(pipeline, [pieces], make_task)
    two = three_rounds(pipeline, [pieces[:1], pieces[1:]], make_task)
    other = three_rounds(pipeline, [pieces[:1]], make_task)
    for name in MAPS:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(other[name], one[name], atol=1e-3), name
    assert one["detail"].any() and one["liveliness"].any()


def test_a_person_who_is_several_clients_is_calibrated_by_each_of_her_clips_once(lively, make_task) -> None:
    """And by one of them twice where she is more clients than she has clips."""
    pipeline, pieces = lively
    alone = [make_task([piece], Calibration(pipeline, 0).initial()) for piece in pieces]
    whole = [Calibration(pipeline, 0).fit(task).update for task in alone]
    task = make_task(pieces, Calibration(pipeline, 0).initial())
    for clients in (len(pieces), len(pieces) + 1):
        people = type(task.people)(pieces, clients)
        parts = [replace(task, people=people, client=str(number)) for number in range(clients)]
        for number, part in enumerate(parts):
            assert np.array_equal(Calibration(pipeline, 0).fit(part).update, whole[number % len(pieces)])


def test_a_fixed_denominator_changes_no_map(lively, make_task) -> None:
    """With noise the sum is divided by what was expected to take part, here by two and a half times as much."""
    pipeline, pieces = lively
    whole, part = (three_rounds(pipeline, [pieces], make_task, over) for over in (1.0, 2.5))
    for name in MAPS:
        torch.testing.assert_close(part[name], whole[name], rtol=1e-3, atol=1e-4)


def test_every_round_fills_its_own_section(lively, make_task) -> None:
    """1 + 7 cells, 1 + 8 factors in the mouth and around, 1 + 2 cells; each with a 1 in front."""
    phase = Calibration(lively[0], 0)
    shared, ends = phase.initial(), np.cumsum([1 + 7 * 64, 1 + 16, 1 + 2 * 64])
    assert shared.shape == (ends[-1],) and not shared.any()
    for number, end in enumerate(ends, start=1):
        begin = 0 if number == 1 else ends[number - 2]
        update = phase.fit(make_task(lively[1], shared, number, 3)).update
        assert update[begin] == 1 and update[begin + 1 : end].any() and update.dtype == np.float32
        assert not update[:begin].any() and not update[end:].any()
        shared = shared + update


def test_of_very_many_clips_some_are_taken_evenly(lively, make_task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 121 clips every third is 41, and every second would be 61: too many."""
    pipeline, pieces = lively
    spoken: list[str] = []
    many = [pieces[number % 4] for number in range(121)]
    place = "fedtalk_ray.training.phases.calibration."
    monkeypatch.setattr(place + "predict", lambda _, piece, __: spoken.append(piece.clip))
    monkeypatch.setattr(place + "products", lambda _: torch.zeros(7, SIDE, SIDE))
    phase = Calibration(pipeline, 0)
    phase.fit(make_task(many, phase.initial(), 1, 3))
    assert spoken == [piece.clip for piece in many[::3]] and len(spoken) <= MOST_CLIPS


def test_a_client_without_a_held_out_clip_has_nothing_to_give(make_pipeline, make_task) -> None:
    phase = Calibration(make_pipeline(), 0)
    with pytest.raises(NothingToGive, match="it has no held-out clip to calibrate by"):
        phase.fit(make_task([], phase.initial(), 1, 3))


def test_predictions_that_are_no_numbers_do_not_leave_the_client(make_pipeline, predicts, make_task) -> None:
    pipeline = make_pipeline()
    pieces = clips(pipeline, [torch.zeros(10, 4, SIDE, SIDE)])
    broken = [torch.full((10, 4, SIDE, SIDE), torch.nan)]
    predicts(pieces, broken, broken)
    phase = Calibration(pipeline, 0)
    with pytest.raises(TrainingError, match="holds values that are no numbers"):
        phase.fit(make_task(pieces, phase.initial(), 1, 3))


@pytest.mark.parametrize("lied", [-40.0, -6.0, 30.0])
def test_a_count_that_one_client_lied_about_is_refused(lively, make_task, lied: float) -> None:
    """All is divided by the 1 that each client writes: with -100 among 24 nothing was left to calibrate by."""
    pipeline, pieces = lively
    phase = Calibration(pipeline, 0)
    honest = phase.fit(make_task(pieces, phase.initial(), 1, 3)).update
    liar = honest.copy()
    liar[0] = lied
    shared = phase.initial() + (7 * honest + liar) / 8
    with pytest.raises(TrainingError, match="times: one sent other figures"):
        phase.fit(make_task(pieces, shared, 2, 3))
    with pytest.raises(TrainingError, match="begin another run without it"):
        phase.finish(shared)


def test_one_client_does_not_stop_the_mouth(lively, make_task) -> None:
    """It sends that nothing in the mouth is as predicted, in a vector as long as may be: no lips moved."""
    pipeline, pieces = lively
    phase = Calibration(pipeline, 0)
    shared = phase.initial()
    for number in (1, 2, 3):
        shared = shared + phase.fit(make_task(pieces, shared, number, 3)).update
    phase.finish(shared)
    mouth = pipeline.denoiser.mouth()
    honest = pipeline.denoiser.certainty.clone()
    assert (honest * mouth).sum() > 0.55 * mouth.sum()
    lied = shared.copy()
    lied[1 : 1 + SIDE**2] -= (LARGEST_STATISTICS * mouth / mouth.norm()).flatten().numpy()
    phase.finish(lied)
    raised = pipeline.denoiser.certainty
    assert (raised * mouth).sum() / mouth.sum() == pytest.approx(LEAST_CERTAINTY, abs=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
def test_rounds_do_not_change_what_all_clients_have_in_common(lively, make_config, make_task, adapted: bool) -> None:
    """Maps move from round to round; weights must be everybody's. Also of the model that the phase `faces` leaves."""
    pipeline, pieces = lively
    if adapted:
        pipeline.register_modules(denoiser=adapters.with_adapters(pipeline.denoiser, 2, 4.0, 2))
    phase = Calibration(pipeline, 0)
    before, shared = phase.frozen(), phase.initial()
    for number in (1, 2, 3):
        shared = shared + phase.fit(make_task(pieces, shared, number, 3)).update
    assert phase.frozen() == before
    next(pipeline.denoiser.parameters()).data += 1
    assert phase.frozen() != before


def test_of_a_lower_face_only_what_is_laid_over_the_picture_is_judged() -> None:
    """Everything is predicted twice too large: half is right around the mouth too, however much eyes and hair move."""
    torch.manual_seed(0)
    pipeline = new_pipeline("lower-face", 32, SIDE, widths=(16, 32), window=4)
    generator, side = torch.Generator().manual_seed(0), 12 * SIDE
    spoken = []
    for number in range(2):
        face = np.random.default_rng(number).integers(60, 200, (1, side, side, 3), np.uint8)
        reference = torch.from_numpy(encode_frames(pipeline.autoencoder, face))
        truth = 0.3 * torch.randn(20, 32, SIDE, SIDE, generator=generator)
        latents = pipeline.denoiser.from_residual(truth[None], reference)[0]
        frames = decode_latents(pipeline.autoencoder, latents, face=face[0])
        frames[:, : side // 3] = np.random.default_rng(9).integers(0, 256, frames[:, : side // 3].shape, np.uint8)
        spoken.append(Prediction(face[0], reference, frames, truth, 2 * truth, 2 * truth, 0 * truth))
    best = torch.ones(SIDE, SIDE)
    assert torch.equal(chosen(nearness(pipeline, spoken, best), SIDE, "lower face"), 0.5 * best)
    assert not lacking_and_lost(pipeline, spoken).any(), "its detail comes from the reference"


def test_faces_are_predicted_as_from_a_photo_which_shows_how_far_its_lips_are_apart(make_pipeline) -> None:
    pipeline = make_pipeline(reference_lips=True)
    base, generator = pipeline.denoiser, torch.Generator().manual_seed(0)
    torch.nn.init.normal_(base.lip_axes, std=30, generator=generator)
    (piece,) = clips(pipeline, [torch.randn(6, 4, SIDE, SIDE, generator=generator)])
    points = np.random.default_rng(0).uniform(0.2, 0.8, (6, 68, 2)).astype(np.float32)
    aperture = torch.full((6,), torch.nan)
    aperture[0] = (float(aperture_of(points)[0]) - base.lip_mean[0]) / base.lip_std[0]
    given = base, pipeline.scheduler, torch.tensor(piece.latents[0]), torch.zeros(6, 44, 40)
    expected = sample_clip(*given, 1, told=Told(reference_lips=aperture))
    found = predict(pipeline, replace(piece, landmarks=points), 0)
    mean = base.from_residual((base.certainty * found.mean)[None], found.reference)[0]
    torch.testing.assert_close(mean, expected, atol=1e-4, rtol=1e-4)
    untold = predict(pipeline, piece, 0)
    assert (untold.mean - found.mean).abs().max() > 1e-3
