"""Calibration: what is shown of a prediction is what predictions turned out to be worth on other clips."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import TrainingError
from fedtalk_ray.model.autoencoder import decode_latents, encode_frames
from fedtalk_ray.model.motion_units import mouth_blend
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.phases.calibration import (
    MAX_LIVELINESS,
    Calibration,
)

SIDE = 8
"""Cells a side."""


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
def predicts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces generation by means and samples that are known, for each piece by its first frame."""

    def known(pieces: list[Piece], means: list[torch.Tensor], samples: list[torch.Tensor]) -> None:
        answers = {
            piece.latents[0].tobytes(): answer
            for piece, answer in zip(pieces, zip(means, samples, strict=True), strict=True)
        }

        def parts(_: object, __: object, reference: torch.Tensor, *___: object, **____: object) -> Iterator[Any]:
            mean, sample = answers[reference.numpy().tobytes()]
            yield mean[:5], sample[:5]
            yield mean[5:], sample[5:]

        monkeypatch.setattr("fedtalk_ray.training.phases.calibration.sample_parts", parts)

    return known


@pytest.fixture
def calibrate(all_rounds: Callable[..., Any], predicts: Callable[..., None]) -> Callable[..., None]:
    """All three rounds, of one client whose clips have these residuals, and are predicted so."""

    def run(pipeline: TalkingHeadPipeline, truth: list, means: list, samples: list | None = None) -> None:
        pieces = clips(pipeline, truth)
        predicts(pieces, means, samples or means)
        all_rounds(Calibration(pipeline, 0), pieces, 3)

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
    with pytest.raises(TrainingError, match="is counted 30 times: one sent other figures"):
        Calibration(pipeline, 0).finish(np.full_like(Calibration(pipeline, 0).initial(), 30))
