"""Lower faces bent to the shape of their lips: beside whole crops that are bent, and what latents say of it."""

import numpy as np
import pytest
import torch

from fedtalk_ray.media.face_template import region_edges
from fedtalk_ray.media.lip_warp import moves_of_face, warp_lips
from fedtalk_ray.model.autoencoder import frames_to_pixels, pixels_to_frames
from fedtalk_ray.model.bending import Bends, LatentBend, bend, lower_flow
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.lower_face import LowerFaceAutoencoder
from fedtalk_ray.model.speech_code import MOST_HEARD

SIDE = 144


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """A smooth picture uint8 [1, S, S, 3]."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = [np.sin(9 * x + 4 * y), np.cos(7 * y - 5 * x), np.sin(8 * x) * np.cos(9 * y)]
    return (128 + 90 * np.stack(waves, axis=-1)[None]).astype(np.uint8)


@pytest.fixture(scope="module")
def opening() -> np.ndarray:
    """How the mouth's points go in three frames: not at all, and the lower lip down by 0.02 and 0.05."""
    moves = np.zeros((3, 20, 2))
    lower = [7, 8, 9, 10, 11, 17, 18, 19]
    moves[1, lower, 1], moves[2, lower, 1] = 0.02, 0.05
    return moves


def test_a_lower_face_is_bent_as_the_whole_crop_is(face: np.ndarray, face_points: np.ndarray, opening) -> None:
    left, top, right, bottom = region_edges(SIDE, "lower face")
    lower = frames_to_pixels(face)[:, :, top:bottom, left:right]
    made = pixels_to_frames(bend(lower, Bends(lower_flow(face_points, opening))))
    expected = warp_lips(face[0], face_points, moves_of_face(opening))[:, top:bottom, left:right]
    assert np.array_equal(made[0], expected[0])
    # At its edges a lower face knows nothing of what lies beyond, and the spline is worked out at other places.
    apart = np.abs(made.astype(int) - expected)[:, 4:-4, 4:-4]
    assert apart.mean() < 0.2 and apart.max() <= 6
    assert np.abs(made[2].astype(int) - made[0]).mean() > 2, "and it is bent"


def test_the_jaw_goes_with_the_lower_lip(opening: np.ndarray) -> None:
    moves = moves_of_face(opening)
    assert np.array_equal(moves[:, 48:], opening) and not moves[..., [0, 1, 2, 14, 15, 16], :].any()
    assert moves[2, 8, 1] == pytest.approx(1.09 * 0.05) and not moves[:, :48, 0].any()
    assert not moves[:, 17:48].any()


def test_latents_are_bent_as_the_soft_picture_that_they_say(face, face_points, opening) -> None:
    autoencoder = LowerFaceAutoencoder()
    latents = autoencoder.encode(frames_to_pixels(face)).latents
    bends = Bends(lower_flow(face_points, opening))
    (made,) = LatentBend(8, 20, 6)(latents, bends[None])
    assert torch.allclose(made[0], latents[0], atol=1e-4)
    torch.testing.assert_close(made, autoencoder.encoder(bend(autoencoder.soft(latents), bends)), atol=1e-4, rtol=1e-4)
    # Of a smooth picture hardly anything is lost: they are nearly those of the bent picture itself.
    true = autoencoder.encoder(bend(autoencoder.window(frames_to_pixels(face)), bends))
    assert (made - true)[1:].norm() < 0.15 * (true - latents)[1:].norm()


def test_latents_are_bent_in_their_own_precision(face_points: np.ndarray, opening: np.ndarray) -> None:
    """Whoever looks for latents by their gradients does so in double precision."""
    bends = Bends(lower_flow(face_points, opening)[None, 1:])
    latents = torch.randn(1, 32, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = LatentBend(8, 20, 6)(latents, bends)
    rounded = LatentBend(8, 20, 6)(latents.float(), bends)
    assert (made.dtype, rounded.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(made.float(), rounded, atol=1e-5, rtol=1e-5)
    trebled = LatentBend(8, 20, 6)(3 * latents, bends)
    torch.testing.assert_close(trebled, 3 * made, atol=1e-12, rtol=1e-12)


def test_where_anything_is_unknown_nothing_moves(face_points: np.ndarray, opening: np.ndarray) -> None:
    some = opening.copy()
    some[1, 0, 0] = np.nan
    flows = lower_flow(face_points, some)
    assert not flows[:2].any() and torch.equal(flows[2], lower_flow(face_points, opening)[2])
    assert not lower_flow(face_points * np.nan, opening).any()


def predicted(denoiser: TalkingHeadDenoiser, batch, **more) -> torch.Tensor:
    with torch.no_grad():
        return denoiser(batch.latents, torch.tensor([500, 500]), batch.speech, batch.reference, **more)


def test_a_network_works_on_the_bent_reference(bender: TalkingHeadDenoiser, make_windows, face_points) -> None:
    """It is told in the place of what the sound suggests, and where no sound is heard nothing is bent."""
    batch = make_windows()
    change = torch.zeros(2, 4, 6)
    change[1, 2] = 1
    flows = torch.stack([bender.flows(face_points, each) for each in change])
    bent = bender.latent_bend(batch.reference, Bends(flows))
    moved = (bent - batch.reference[:, None]).abs().amax((2, 3, 4)) > 1e-3
    assert moved.nonzero().tolist() == [[1, 2]]
    told, plain = predicted(bender, batch, bent=bent), predicted(bender, batch)
    torch.testing.assert_close(told[0], plain[0], atol=1e-4, rtol=1e-4)
    motion = bender.to_residual(bent, batch.reference)[1, 2]
    # What it predicts is counted from the bent reference; how it answers to it is learned.
    assert (told[1, 2] - plain[1, 2] - motion).norm() < (told[1, 2] - plain[1, 2]).norm()
    deaf = torch.tensor([False, False])
    assert torch.equal(predicted(bender, batch, bent=bent, heard=deaf), predicted(bender, batch, heard=deaf))


def test_who_bends_hears_lip_shapes_and_nothing_else(make_denoiser, bender: TalkingHeadDenoiser, make_windows) -> None:
    """As its encoder says, but nothing that no lips do; told shapes are not heard.

    Other networks hear what their encoder says."""
    sounds, told = make_windows(3).speech, torch.randn(3, 4, 6)
    told[:, 1:] = torch.nan
    with torch.no_grad():
        raw, codes, some = bender.speech_encoder(sounds), bender.codes(sounds), bender.codes(sounds, lips=told)
        assert raw.abs().max() < MOST_HEARD and raw[..., 6:].abs().min() > 0
        assert torch.equal(codes[..., :6], raw[..., :6]) and not codes[..., 6:].any()
        assert torch.equal(some[:, 0, :6], told[:, 0]) and torch.equal(some[:, 1:], codes[:, 1:])
        torch.testing.assert_close(bender.heard_shapes(sounds), codes[..., :6])
        other = make_denoiser()
        assert torch.equal(other.codes(sounds), other.speech_encoder(sounds))
        bender.speech_encoder.linear1.weight.mul_(1e4)
        assert bender.codes(sounds).abs().max() == MOST_HEARD


def test_what_bends_is_saved_and_older_networks_learn_it(make_denoiser, make_windows, face_points, tmp_path) -> None:
    batch, denoiser = make_windows(), make_denoiser(region="lower face")
    assert not denoiser.takes_bent() and denoiser.told(None, batch.latents) == {}
    before = denoiser.state_dict().keys()
    denoiser.bend_latents(4, 2, 1)
    assert denoiser.state_dict().keys() == before, "nothing of it is a weight"
    denoiser.save_pretrained(str(tmp_path))
    loaded = TalkingHeadDenoiser.from_pretrained(str(tmp_path)).eval()
    assert loaded.takes_bent()
    given = loaded.told(None, batch.latents)
    assert torch.equal(predicted(loaded, batch, **given), predicted(denoiser, batch, **given))


def test_a_shape_moves_the_points_that_it_was_read_from(bender: TalkingHeadDenoiser) -> None:
    """Along orthonormal axes the way back is exact."""
    axes = torch.linalg.qr(torch.randn(40, 5, generator=torch.Generator().manual_seed(1))).Q.T
    bender.lip_axes.copy_(axes)
    moved = 0.03 * torch.randn(7, 5, generator=torch.Generator().manual_seed(2)) @ axes
    motion = torch.cat([torch.zeros(7, 1), moved], dim=1)
    change = bender.lip_shape(motion) - bender.lip_shape(torch.zeros(1, 41))
    torch.testing.assert_close(bender.mouth_moves(change), moved.unflatten(1, (20, 2)))


def test_what_goes_with_an_aperture_is_what_least_squares_say(bender: TalkingHeadDenoiser) -> None:
    """Of mouths that move along the axes by their deviations, whose lips part as their inner points do."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(40, 5)))[0].T
    spread = np.array([0.05, 0.03, 0.02, 0.01, 0.01])
    numbers = rng.normal(size=(20_000, 5)) * spread
    points = (numbers @ axes).reshape(-1, 20, 2)
    gaps = [points[:, below, 1] - points[:, above, 1] for above, below in ((13, 19), (14, 18), (15, 17))]
    aperture = np.mean(gaps, axis=0) / 0.36
    bender.lip_axes.copy_(torch.from_numpy(axes))
    bender.lip_std.copy_(torch.from_numpy(np.r_[aperture.std(), spread]))
    slopes = [np.polyfit(aperture / aperture.std(), each, 1)[0] for each in (numbers / spread).T]
    np.testing.assert_allclose(bender.with_aperture(), [1, *slopes], atol=0.03)
