"""What a network is told of lips while it lets a face speak."""

import numpy as np
import pytest
import torch

from fedtalk_ray.media.lips import LIP_MOTION
from fedtalk_ray.model.bending import Bends, bend, lower_flow
from fedtalk_ray.model.told import KEPT, Remembered, Told, filled, own_of_photo, told_of

UNKNOWN = np.full(LIP_MOTION, np.nan, np.float32)


@pytest.fixture
def heard(bender) -> torch.Tensor:
    """What twenty frames hear."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, bender.config.speech_hops, bender.config.mel_bins, generator=generator)


@pytest.fixture
def reference(bender) -> torch.Tensor:
    return torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(2))


def test_no_frame_is_worked_out_twice_while_it_may_be_asked_for() -> None:
    asked: list[int] = []

    def compute(numbers: torch.Tensor) -> torch.Tensor:
        asked.extend(numbers.tolist())
        return torch.stack([numbers, numbers**2], dim=1)

    rows = Remembered(compute)
    expected = torch.tensor([[[3, 9], [1, 1]], [[1, 1], [2, 4]]])
    assert torch.equal(rows[torch.tensor([[3, 1], [1, 2]])], expected) and asked == [1, 2, 3]
    assert torch.equal(rows[torch.tensor([2, 4])], torch.tensor([[2, 4], [4, 16]])) and asked == [1, 2, 3, 4]
    rows[torch.tensor([KEPT + 3])]
    assert len(rows._rows) == 3, "what lies further back than any window is forgotten"


def bent_to(bender, reference, points, change: torch.Tensor) -> torch.Tensor:
    flows = lower_flow(points, bender.mouth_moves(change).double().numpy())
    return bender.latent_bend(reference[None], Bends(flows[None]))[0]


def test_told_lips_bend_from_the_references_own(bender, heard, reference, face_points) -> None:
    lips = np.random.default_rng(0).normal(0, 0.02, (20, LIP_MOTION)).astype(np.float32)
    told = told_of(bender, reference, face_points, heard, lips[0], lips)
    shapes = bender.lip_shape(torch.from_numpy(lips))
    torch.testing.assert_close(told.lips, shapes)
    torch.testing.assert_close(told.reference_lips, shapes[0])
    places = torch.tensor([0, 7, 3])
    torch.testing.assert_close(told.bent[places], bent_to(bender, reference, face_points, (shapes - shapes[0])[places]))
    torch.testing.assert_close(told.bent[torch.tensor([0])][0], reference, atol=1e-4, rtol=1e-4)


def test_opened_lips_show_an_inside_in_latents_and_in_pictures(bender, heard, reference, face_points) -> None:
    lips = np.random.default_rng(0).normal(0, 0.02, (20, LIP_MOTION)).astype(np.float32)
    places = torch.tensor([9, 7, 3])
    plain = told_of(bender, reference, face_points, heard, lips[0], lips).bent[places]
    bender.show_open_mouths()
    bender.open_mouth.colours[0] = 0.7
    told = told_of(bender, reference, face_points, heard, lips[0], lips)
    shapes = bender.lip_shape(torch.from_numpy(lips))
    laid = bender.laid(reference, face_points, shapes[0], shapes[places])
    assert laid is not None and laid[:, 3].any()
    bends = Bends(bender.flows(face_points, shapes[places] - shapes[0]), laid)
    torch.testing.assert_close(told.bent[places], bender.latent_bend(reference[None], bends[None])[0])
    assert not torch.allclose(told.bent[places], plain, atol=1e-3)
    lower = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(told.bent.pictures(lower, places), bend(lower, bends), atol=1e-4, rtol=1e-4)


def test_what_is_known_is_bent_from_and_what_is_heard_bent_to(bender, heard, reference, face_points) -> None:
    known = np.random.default_rng(0).normal(0, 0.02, LIP_MOTION).astype(np.float32)
    told = told_of(bender, reference, face_points, heard, known)
    own = bender.lip_shape(torch.from_numpy(known))
    with torch.no_grad():
        shapes = bender.speech_encoder(heard[None])[0, :, :6]
    assert told.lips is None, "the network hears them itself"
    assert torch.equal(told.reference_lips, own)
    torch.testing.assert_close(
        told.bent[torch.arange(20)], bent_to(bender, reference, face_points, shapes - own), atol=1e-4, rtol=1e-4
    )


def test_a_photo_has_the_lips_that_its_sound_begins_with_moved_to_its_aperture(bender) -> None:
    """A quarter of a difference of a deviation counts, and all beyond, in each number as it goes with the aperture."""
    first = torch.tensor([0.2, -1.0, 0.5, 0.0, 0.3, 0.1])
    along = bender.with_aperture()
    for aperture, counted in ((0.2, 0.0), (0.8, 0.15), (-0.4, -0.15), (1.2, 0.25), (3.2, 2.25), (-2.8, -2.25)):
        found = own_of_photo(bender, torch.tensor(aperture), first)
        torch.testing.assert_close(found, first + counted * along)


@pytest.mark.parametrize(("linear", "beginning"), [(False, 1), (True, 3)])
def test_a_photo_is_told_so(linear: bool, beginning: int, bender, heard, reference, face_points) -> None:
    """By what the first frame hears, or by the mean of the first three where a linear map hears."""
    bender.hear_by("features", *heard.shape[1:], linear=linear)
    torch.nn.init.normal_(bender.speech_encoder.linear1.weight, std=0.1, generator=torch.Generator().manual_seed(4))
    shapes = bender.heard_shapes(heard)
    assert bender.hears_linearly() == linear and not torch.allclose(shapes[0], shapes[:3].mean(0), atol=0.01)
    known = UNKNOWN.copy()
    known[0] = 0.1
    aperture = (0.1 - bender.lip_mean[0]) / bender.lip_std[0]
    for count in (20, 2, 1):
        told = told_of(bender, reference, face_points, heard[:count], known)
        expected = own_of_photo(bender, aperture, shapes[: min(count, beginning)].mean(0))
        torch.testing.assert_close(told.reference_lips, expected)


def test_where_lips_are_told_the_rest_of_a_photos_goes_with_its_aperture(bender, heard, reference, face_points) -> None:
    known, lips = UNKNOWN.copy(), np.zeros((20, LIP_MOTION), np.float32)
    known[0] = 0.1
    own = told_of(bender, reference, face_points, heard, known, lips).reference_lips
    torch.testing.assert_close(own, own[0] * bender.with_aperture())
    nothing = torch.full((2, 6), torch.nan)
    assert filled(bender, nothing).isnan().all(), "of what shows no aperture nothing is made up"


def test_a_network_is_told_what_it_takes(make_denoiser, bender, heard, reference, face_points) -> None:
    lips = np.zeros((20, LIP_MOTION), np.float32)
    deaf = make_denoiser(reference_lips=True, bends=(4, 2, 1))
    assert told_of(deaf, reference, face_points, heard, lips[0]) == Told(), "without lip axes there are no shapes"
    for older, own in ((make_denoiser(), False), (make_denoiser(reference_lips=True), True)):
        older.lip_axes.copy_(bender.lip_axes)
        told = told_of(older, reference, None, heard, lips[0], lips)
        assert told.bent is None and told.lips.shape == (20, 6) and (told.reference_lips is not None) == own
    assert told_of(bender, reference, None, heard, lips[0]).bent is None, "a face without points is not bent"


def test_listening_leaves_the_network_as_it_was(bender, heard) -> None:
    """In training it listens without dropout, and goes on with it."""
    bender.train()
    once, again = (bender.heard_shapes(heard.view(4, 5, *heard.shape[1:])) for _ in range(2))
    assert torch.equal(once, again) and once.shape == (4, 5, 6) and bender.speech_encoder.training
    bender.eval()
    assert not bender.heard_shapes(heard).requires_grad and not bender.speech_encoder.training


def test_of_a_sound_that_is_still_coming_the_photo_alone_says_where_lips_begin(bender, heard, reference, face_points):
    """How loud it is, and so what its first frame says, is only known later."""
    known = UNKNOWN.copy()
    known[0] = 0.1
    told = told_of(bender, reference, face_points, heard, known, live=True)
    aperture = (0.1 - bender.lip_mean[0]) / bender.lip_std[0]
    torch.testing.assert_close(told.reference_lips, aperture * bender.with_aperture())
