"""Calibration: what is shown of a prediction is what predictions turned out to be worth on other clips."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fedtalk_ray.model.autoencoder import decode_latents, decode_pixels, encode_frames
from fedtalk_ray.model.denoiser import mouth_blend
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.calibration import FACTORS_TRIED, MAX_LIVELINESS, Prediction, calibrate, shrinkage

SIDE = 8


def clips(pipeline: TalkingHeadPipeline, residuals: list[torch.Tensor]) -> list[Piece]:
    """Pieces whose frames are what the autoencoder makes of random references plus these residuals."""
    pieces = []
    for number, residual in enumerate(residuals):
        rng = np.random.default_rng(number)
        face = rng.integers(60, 200, (1, 4 * SIDE, 4 * SIDE, 3), dtype=np.uint8)
        reference = torch.from_numpy(encode_frames(pipeline.autoencoder, face))
        latents = pipeline.denoiser.from_residual(residual[None], reference)[0]
        frames = decode_latents(pipeline.autoencoder, latents)
        frames[0] = face[0]
        sound = np.zeros((len(residual), 44, 40), np.float16)
        pieces.append(Piece("s1", str(number), 0, frames, latents.numpy(), sound, np.zeros(0, np.int16)))
    return pieces


@pytest.fixture
def predicts(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[torch.Tensor], list[torch.Tensor]], None]:
    """Replaces generation by means and samples that are known."""

    def known(means: list[torch.Tensor], samples: list[torch.Tensor]) -> None:
        answers = iter(zip(means, samples, strict=True))

        def parts(*_: object, **__: object) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            mean, sample = next(answers)
            yield mean[:5], sample[:5]
            yield mean[5:], sample[5:]

        monkeypatch.setattr("fedtalk_ray.training.calibration.sample_parts", parts)

    return known


def test_the_mean_is_shrunk_to_what_it_is_worth(make_pipeline, predicts) -> None:
    """Truth = share * mean + something that has nothing to do with it: least squares finds the share of each cell."""
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    means = [torch.randn(60, 4, SIDE, SIDE, generator=generator) for _ in range(4)]
    share = torch.tensor([0.9, 0.6, 0.2, -0.5]).repeat_interleave(2)[:, None].expand(SIDE, SIDE)  # by rows
    truth = [share * mean + 0.3 * torch.randn(mean.shape, generator=generator) for mean in means]
    for residual in truth:
        residual[0] = 0  # the reference itself
    predicts(means, means)
    calibrate(pipeline, clips(pipeline, truth), 0)
    certainty = pipeline.denoiser.certainty
    # Neighbours are averaged, so only cells amid their equals come out as they went in; the mirror image is too.
    padded = torch.cat([share[:1], share, share[-1:]])
    expected = ((padded[:-2] + padded[1:-1] + padded[2:]) / 3).clamp(0, 1)
    # Frames of one kind want no other factor; one that moves a little more costs them next to nothing.
    ratio = certainty[:3] / expected[:3]
    assert 0.95 < ratio.mean() < 1.15 and ratio.std() < 0.03
    assert torch.allclose(certainty[7], torch.zeros(())), "not the contrary of what was predicted"
    assert torch.allclose(certainty, certainty.flip(1))


def test_caution_is_for_what_most_frames_want(make_pipeline, predicts) -> None:
    """Nine frames of ten want 0.7 of the mean, one, five times as large, wants all of it.

    Least squares say (9 * 0.7 + 25) / (9 + 25) = 0.92; of the factors tried 0.8 comes nearest to 0.7 / 0.92.
    """
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    large = (torch.arange(60) % 10 == 9)[:, None, None, None]
    means = [torch.randn(60, 4, SIDE, SIDE, generator=generator) * torch.where(large, 1.0, 0.2) for _ in range(4)]
    truth = [torch.where(large, 1.0, 0.7) * mean for mean in means]
    for residual in truth:
        residual[0] = 0
    predicts(means, means)
    calibrate(pipeline, clips(pipeline, truth), 0)
    assert torch.allclose(pipeline.denoiser.certainty, torch.tensor(0.8 * 0.92), atol=0.03)


def test_of_two_cautions_that_are_nearly_as_good_the_one_that_moves_more_is_taken(make_pipeline, predicts) -> None:
    """A twentieth of what is predicted is right, the rest of the truth is noise: no factor costs anything."""
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    means = [torch.randn(60, 4, SIDE, SIDE, generator=generator) for _ in range(4)]
    truth = [torch.randn(mean.shape, generator=generator) + 0.05 * mean for mean in means]
    spoken = [
        Prediction(piece.frames[0], torch.from_numpy(piece.latents[:1]), piece.frames, true, mean, mean)
        for piece, true, mean in zip(clips(pipeline, truth), truth, means, strict=True)
    ]
    assert (shrinkage(pipeline, spoken, torch.full((SIDE, SIDE), 0.05)) == FACTORS_TRIED[-1]).all()


def test_faces_move_as_much_as_real_ones_and_the_mouth_is_the_mean_alone(make_pipeline, predicts) -> None:
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    still = [torch.zeros(60, 4, SIDE, SIDE) for _ in range(3)]
    samples = [torch.randn(60, 4, SIDE, SIDE, generator=generator) for _ in still]
    wanted = torch.tensor([0.5] * 4 + [3.0] * 4)[:, None]  # the lower half moves more than samples may
    truth = [wanted * torch.randn(each.shape, generator=generator) for each in samples]
    predicts(still, samples)
    calibrate(pipeline, clips(pipeline, truth), 0)
    lively, outside = pipeline.denoiser.liveliness, 1 - mouth_blend(SIDE)
    assert torch.allclose(lively[:3], 0.5 * outside[:3], atol=0.03)
    assert torch.allclose(lively[5:], MAX_LIVELINESS * outside[5:])
    assert lively[5, 4] == 0


def test_who_moves_much_does_not_make_the_others_tremble(make_pipeline, predicts) -> None:
    """Five still people and one who moves six times as much: a sample's energy over the truth's is 1 on average."""
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    still = [torch.zeros(60, 4, SIDE, SIDE) for _ in range(6)]
    samples = [torch.randn(60, 4, SIDE, SIDE, generator=generator) for _ in still]
    amounts = [0.5] * 5 + [3.0]
    truth = [amount * torch.randn(60, 4, SIDE, SIDE, generator=generator) for amount in amounts]
    predicts(still, samples)
    calibrate(pipeline, clips(pipeline, truth), 0)
    expected = (6 / sum(1 / amount**2 for amount in amounts)) ** 0.5  # 0.55; of the summed energies it were 1.31
    assert torch.allclose(pipeline.denoiser.liveliness[:3], torch.tensor(expected), atol=0.05)


def test_detail_comes_back_where_the_face_keeps_still(make_pipeline, predicts) -> None:
    """True frames hold all that the autoencoder loses of the reference, in the upper half of the picture only."""
    pipeline = make_pipeline()
    still = [torch.zeros(10, 4, SIDE, SIDE) for _ in range(4)]
    pieces = clips(pipeline, still)
    for piece in pieces:
        piece.frames[:, : 2 * SIDE] = piece.frames[0, : 2 * SIDE]
    predicts(still, still)
    calibrate(pipeline, pieces, 0)
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
    make_pipeline, predicts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four clips of 60 frames, pixels for 23: five of each clip, once for each factor and once for the detail."""
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    means = [torch.randn(60, 4, SIDE, SIDE, generator=generator) for _ in range(4)]
    truth = [0.6 * mean for mean in means]
    for residual in truth:
        residual[0] = 0
    pieces, decoded = clips(pipeline, truth), []

    def decode(autoencoder: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
        decoded.append(len(latents))
        return decode_pixels(autoencoder, latents)

    monkeypatch.setattr("fedtalk_ray.training.calibration.decode_pixels", decode)
    monkeypatch.setattr("fedtalk_ray.training.calibration.MAX_PIXELS", 23 * (4 * SIDE) ** 2)
    predicts(means, means)
    calibrate(pipeline, pieces, 0)
    assert decoded == [5] * 4 * (len(FACTORS_TRIED) + 1)
    # All frames say 0.6 but the first, so fewer of them say the same.
    assert torch.allclose(pipeline.denoiser.certainty, torch.tensor(0.6), atol=0.02)


@pytest.mark.parametrize(("frames", "count", "kept"), [(10, 5, [1, 3, 5, 7, 9]), (10, 1, [5]), (3, 8, [0, 1, 2])])
def test_fewer_frames_are_taken_evenly(frames: int, count: int, kept: list[int]) -> None:
    numbers = torch.arange(frames)
    every = Prediction(np.zeros(0), numbers[:0], numbers.numpy(), numbers, numbers, numbers).fewer(count)
    assert every.frames.tolist() == every.truth.tolist() == every.mean.tolist() == every.sample.tolist() == kept


def test_it_is_saved_with_the_weights(make_pipeline, predicts, tmp_path: Path) -> None:
    pipeline = make_pipeline()
    for buffer in (pipeline.denoiser.certainty, pipeline.denoiser.liveliness, pipeline.denoiser.detail):
        buffer.uniform_()
    pipeline.denoiser.save_pretrained(tmp_path)
    loaded = type(pipeline.denoiser).from_pretrained(tmp_path)
    for name in ("certainty", "liveliness", "detail"):
        assert torch.equal(getattr(loaded, name), getattr(pipeline.denoiser, name))


def test_a_network_that_predicts_noise_has_no_mean_to_calibrate(make_pipeline, predicts) -> None:
    pipeline = make_pipeline(prediction_type="epsilon")
    predicts([], [])
    calibrate(pipeline, clips(pipeline, [torch.zeros(6, 4, SIDE, SIDE)]), 0)
    assert (pipeline.denoiser.certainty == 1).all() and (pipeline.denoiser.detail == 0).all()
