"""What windows in training are told of lips, and what their references are bent to."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedtalk_ray.media.lips import LIP_MOTION
from fedtalk_ray.model.bending import Bends, lower_flow
from fedtalk_ray.model.speech_code import MOST_HEARD
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.told_lips import lips_wanted, tell, tell_held_out

COUNT = 60


@pytest.fixture
def windows(make_windows, face_points) -> WindowBatch:
    batch = make_windows(COUNT)
    generator = torch.Generator().manual_seed(3)
    batch.lips = 0.02 * torch.randn(COUNT, 4, LIP_MOTION, generator=generator)
    batch.reference_lips = 0.02 * torch.randn(COUNT, LIP_MOTION, generator=generator)
    batch.reference_points = torch.from_numpy(face_points).float().expand(COUNT, -1, -1)
    return batch


def test_references_are_bent_from_what_is_told_of_them_to_what_is_told_or_heard(bender, windows, face_points) -> None:
    """By the definition, window after window: where nothing is told of a reference it stays as it is, and of who shows
    an aperture alone the rest of her lips is what goes with it."""
    true, own = bender.lip_shape(windows.lips), bender.lip_shape(windows.reference_lips)
    bends = tell(bender, windows, 0.7, np.random.default_rng(0))
    assert bends.laid is None
    with torch.no_grad():
        heard = bender.speech_encoder(windows.speech)[..., :6]
    assert heard.abs().max() < MOST_HEARD
    kinds = []
    for place in range(COUNT):
        told, known = not windows.lips[place].isnan().any(), ~windows.reference_lips[place].isnan()
        kinds.append((told, int(known.sum())))
        shapes = true[place] if told else heard[place]
        start = own[place] if known.all() else own[place, 0] * bender.with_aperture()
        if not known.any():
            assert not bends.flows[place].any()
            torch.testing.assert_close(
                windows.bent[place], windows.reference[place].expand(4, -1, -1, -1), atol=1e-4, rtol=1e-4
            )
            continue
        expected = lower_flow(face_points, bender.mouth_moves(shapes - start).double().numpy())
        torch.testing.assert_close(bends.flows[place], expected, atol=1e-5, rtol=1e-4)
        bent = bender.latent_bend(windows.reference[place][None], Bends(expected[None]))[0]
        torch.testing.assert_close(windows.bent[place], bent, atol=1e-3, rtol=1e-3)
    assert set(kinds) == {(told, known) for told in (False, True) for known in (0, 1, 6)}


def test_lips_are_wanted_to_be_told_or_to_bend_by(make_denoiser, bender) -> None:
    older = make_denoiser()
    assert not lips_wanted(older, 0.9), "it knows no lips"
    older.lip_axes.copy_(bender.lip_axes)
    assert lips_wanted(older, 0.9) and not lips_wanted(older, 0.0) and lips_wanted(bender, 0.0)


def test_a_network_is_judged_by_what_it_hears_from_the_references_own_lips(bender, windows, face_points) -> None:
    """What the windows' own lips are is not told, and the windows themselves stay as they are."""
    own, few = bender.lip_shape(windows.reference_lips), next(windows.each())
    told = tell_held_out(bender, few)
    assert told.lips.isnan().all() and few.lips.shape == (1, 4, LIP_MOTION)
    torch.testing.assert_close(told.reference_lips, own[:1])
    change = bender.heard_shapes(few.speech)[0] - own[0]
    flows = lower_flow(face_points, bender.mouth_moves(change).double().numpy())
    torch.testing.assert_close(told.bent, bender.latent_bend(few.reference, Bends(flows[None])), atol=1e-4, rtol=1e-4)
    plain = replace(few, reference_lips=torch.zeros(1, 0))
    assert tell_held_out(bender, plain) is plain
