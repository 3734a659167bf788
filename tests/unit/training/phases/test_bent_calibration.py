"""Calibration of a network that paints on a bent reference: what it adds to that is shrunk, and moves as real faces."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedtalk_ray.media.lips import LIP_MOTION, lips_of
from fedtalk_ray.model.autoencoder import decode_latents, encode_frames
from fedtalk_ray.model.motion_units import mouth_blend
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, new_pipeline
from fedtalk_ray.model.sampling import sample_clip
from fedtalk_ray.model.told import told_of
from fedtalk_ray.training.phases.calibration import (
    LEAST_CERTAINTY,
    MAX_LIVELINESS,
    Calibration,
    Prediction,
    factor,
    nearness,
    predict,
    products,
)
from tests.unit.training.phases.known_predictions import SIDE, clips


def test_what_a_network_adds_to_the_bent_reference_is_what_is_calibrated(make_pipeline, face_points) -> None:
    """Frames that are the bent reference itself: there is nothing to add, and all of what is added is wrong."""
    pipeline = make_pipeline(reference_lips=True, bends=(4, 2, 1), region="lower face")
    base, generator = pipeline.denoiser, torch.Generator().manual_seed(0)
    torch.nn.init.normal_(base.lip_axes, std=0.2, generator=generator)
    base.lip_std.fill_(0.05)
    (piece,) = clips(pipeline, [torch.randn(6, 4, SIDE, SIDE, generator=generator)])
    points = np.repeat(face_points[None], 6, axis=0).astype(np.float32)
    sound = np.random.default_rng(0).normal(size=(6, 44, 40)).astype(np.float16)
    reference = torch.tensor(piece.latents[0])
    aperture = lips_of(points[:1], 0)
    told = told_of(base, reference, points[0], torch.from_numpy(sound).float(), aperture)
    bent = told.bent[torch.arange(6)]
    piece = replace(piece, landmarks=points, speech=sound, latents=torch.cat([reference[None], bent[1:]]).numpy())
    found = predict(pipeline, piece, 0)
    motion = base.to_residual(bent[None], reference[None])[0]
    torch.testing.assert_close(found.motion, motion, atol=1e-4, rtol=1e-4)
    assert motion.abs().max() > 0.1 and found.truth[1:].abs().max() < 1e-4
    right, size, *_ = products([found.fewer(6)])
    assert not factor(right, size)[4:7, 2:6].gt(0.2).any()
    # Shown as they are asked for: the bent reference and a part of the rest.
    base.certainty.fill_(0.3)
    given = base, pipeline.scheduler, reference, torch.from_numpy(sound).float()
    shown = base.from_residual((found.motion + 0.3 * found.mean)[None], reference[None])[0]
    torch.testing.assert_close(sample_clip(*given, 1, told=told), shown, atol=1e-4, rtol=1e-4)


def test_a_network_that_bends_may_add_nothing(make_pipeline, all_rounds, predicts) -> None:
    """Its lips move all the same, so what it adds is not held at `LEAST_CERTAINTY`."""
    for bends, least in ((None, LEAST_CERTAINTY), ((4, 2, 1), 0.0)):
        pipeline, generator = make_pipeline(bends=bends), torch.Generator().manual_seed(0)
        means = [torch.randn(20, 4, SIDE, SIDE, generator=generator) for _ in range(3)]
        truth = [-mean for mean in means]
        pieces = clips(pipeline, truth)
        predicts(pieces, means, means)
        all_rounds(Calibration(pipeline, 0), pieces, 3)
        mouth = pipeline.denoiser.mouth()
        assert float((pipeline.denoiser.certainty * mouth).sum() / mouth.sum()) == pytest.approx(least, abs=0.01)


def test_on_a_bent_reference_as_much_is_shown_as_is_asked_for(make_pipeline, all_rounds, predicts) -> None:
    """Where all that a network adds to its reference is right, as in the clips that it is calibrated on."""
    certain = []
    for bends in (None, (4, 2, 1)):
        pipeline, generator = make_pipeline(bends=bends), torch.Generator().manual_seed(0)
        means = [torch.randn(20, 4, SIDE, SIDE, generator=generator) for _ in range(3)]
        pieces = clips(pipeline, means)
        predicts(pieces, means, means)
        all_rounds(Calibration(pipeline, 0, shown=0.25), pieces, 3)
        certain.append(pipeline.denoiser.certainty)
    torch.testing.assert_close(certain[0], torch.ones(SIDE, SIDE), atol=0.1, rtol=0)
    torch.testing.assert_close(certain[1], 0.25 * certain[0])


def test_frames_differ_as_real_ones_do_also_where_the_reference_is_bent(make_pipeline) -> None:
    """What is shown moves as the truth: the bent reference, what is certain of the mean, and what a sample adds."""
    pipeline, generator = make_pipeline(bends=(4, 2, 1), region="lower face"), torch.Generator().manual_seed(0)
    shape = (1600, 4, SIDE, SIDE)
    motion, mean, more = (torch.randn(shape, generator=generator) for _ in range(3))
    mean = mean - 0.5 * motion  # what the network adds takes back a part of the bending
    truth = 1.2 * torch.randn(shape, generator=generator) + mean - motion
    spoken = Prediction(np.zeros(0), motion[:1], np.zeros(0), truth, mean, mean + more, motion)
    first = products([spoken])
    Calibration(pipeline, 0, shown=0.6)._show(first, None)
    base = pipeline.denoiser
    shown = motion + base.certainty * mean + base.liveliness * more
    lively = (base.liveliness > 0.05) & (base.liveliness < MAX_LIVELINESS) & (mouth_blend(SIDE, "lower face") == 0)
    assert int(lively.sum()) == SIDE, "the row above the mouth"
    ratio = (shown[1:] - shown[:-1]).square().sum((0, 1)) / (motion + truth).diff(dim=0).square().sum((0, 1))
    assert torch.allclose(ratio[lively], torch.ones(()), atol=0.1)


def test_a_still_clip_says_nothing_of_motion_however_it_is_bent() -> None:
    generator = torch.Generator().manual_seed(0)
    motion, mean = (torch.randn(9, 4, SIDE, SIDE, generator=generator) for _ in range(2))
    still = Prediction(np.zeros(0), motion[:1], np.zeros(0), -motion, mean, mean, motion)
    assert not products([still])[2:].any()


def test_nearness_is_judged_on_the_bent_face(face_points: np.ndarray, monkeypatch) -> None:
    """Of frames that are the bent picture itself nothing that is added comes nearer, and detail that is not bent hides
    how far away it leads."""
    torch.manual_seed(0)
    pipeline = new_pipeline("lower-face", 32, 4, widths=(16, 32), window=4)
    base = pipeline.denoiser.eval()
    base.bend_latents(8, 20, 6)
    torch.nn.init.normal_(base.lip_axes, std=0.2, generator=torch.Generator().manual_seed(1))
    base.lip_std.fill_(0.1)
    face = np.random.default_rng(0).integers(60, 200, (1, 48, 48, 3), dtype=np.uint8)
    reference = torch.from_numpy(encode_frames(pipeline.autoencoder, face))
    lips = np.random.default_rng(0).normal(0, 0.02, (6, LIP_MOTION)).astype(np.float32)
    told, places = told_of(base, reference[0], face_points, torch.zeros(6, 44, 40), lips[0], lips), torch.arange(6)
    bent = pipeline.bent(face[0], told, places)
    motion = base.to_residual(told.bent[places][None], reference)[0]
    frames = decode_latents(pipeline.autoencoder, told.bent[places], face=face[0], bent=bent)
    wrong = 0.05 * torch.ones_like(motion)
    spoken = Prediction(face[0], reference, frames, 0 * motion, wrong, wrong, motion, told, places).fewer(3)
    assert not nearness(pipeline, [spoken], torch.zeros(4, 4)).any(), "of nothing no factor is nearer"
    reached = nearness(pipeline, [spoken], torch.ones(4, 4))
    assert (reached.diff(dim=0) < 0).all()
    monkeypatch.setattr(TalkingHeadPipeline, "bent", lambda *_: None)
    assert nearness(pipeline, [spoken], torch.ones(4, 4))[-1, 0] > reached[-1, 0] + 1
