"""What opened lips show, in closed form: what clients send sums up to what the centre would learn, whoever lies."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import TrainingError
from fedtalk_ray.media.face_template import region_edges
from fedtalk_ray.media.lips import aperture_of, lip_motion
from fedtalk_ray.model.autoencoder import frames_to_pixels
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.open_mouth import MOST_LIGHT, colour_around, inside_of
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.own_mouth import own_mouth, shows_lips_apart
from fedtalk_ray.training.phases.mouths import (
    COLOURS,
    RIDGE,
    Mouths,
)

EMPTY = np.zeros(0)
SIDE, LIPS = 48, 6


def piece(frames: int, seed: int, skin: float = 180) -> Piece:
    """A face of one colour whose mouth opens up to 0.16, and shows half of that colour above and less below, the
    redder the wider it is open."""
    rng = np.random.default_rng(seed)
    points = np.tile(np.random.default_rng(0).uniform(0.3, 0.7, (68, 2)), (frames, 1, 1))
    points[:, 36:42], points[:, 42:48] = (0.3, 0.4), (0.7, 0.4)
    corners = np.stack([np.linspace(0.35, 0.65, 5), np.full(5, 0.7)], axis=1)
    opened = rng.uniform(0, 0.16, frames)
    points[:, 60:65], points[:, [67, 66, 65]] = corners, corners[1:4]
    points[:, 65:68, 1] += opened[:, None]
    points[:, 48:60, 0], points[:, 48:60, 1] = np.linspace(0.3, 0.7, 12), np.linspace(0.66, 0.74, 12)
    points[:, 55:60, 1] += opened[:, None]
    pictures = np.full((frames, SIDE, SIDE, 3), float(skin))
    for picture, wide in zip(pictures, opened, strict=True):
        first, last = round(0.7 * SIDE), round((0.7 + wide) * SIDE)
        picture[first:last, round(0.35 * SIDE) : round(0.65 * SIDE)] = skin * np.array([0.4 + 2 * wide, 0.4, 0.4])
    noisy = pictures + rng.normal(0, 2, pictures.shape)
    frames_ = noisy.round().clip(0, 255).astype(np.uint8)
    return Piece("s1", f"clip{seed}", 0, frames_, EMPTY, EMPTY, EMPTY, landmarks=points.astype("f4"))


CLIENTS = {
    "a": [piece(65, 1)],
    "b": [piece(60, 2, 120), piece(80, 3, 120)],
    "c": [piece(75, 4 + n, 90) for n in range(3)],
}


@pytest.fixture
def opener(make_denoiser: Callable[..., TalkingHeadDenoiser]) -> TalkingHeadDenoiser:
    """A denoiser that bends its reference and can show open mouths, with lip axes of its own and the clients'
    deviations."""
    denoiser = make_denoiser(bends=(4, 2, 1), region="lower face", opens=True)
    torch.nn.init.normal_(denoiser.lip_axes, std=0.2, generator=torch.Generator().manual_seed(0))
    numbers = denoiser.lip_shape(torch.cat([torch.from_numpy(lip_motion(p.landmarks)) for p in CLIENTS["c"]]))
    denoiser.lip_mean[0] = numbers[:, 0].mean()
    denoiser.lip_std.copy_(numbers.std(0))
    return denoiser


def pooled(opener: TalkingHeadDenoiser, pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Regressors [T, 1 + L], colours [T, P] in units of those around the mouth, and weights [T]."""
    regressors, colours, weights = [], [], []
    left, top, right, bottom = region_edges(SIDE, "lower face")
    for each in pieces:
        shapes = opener.lip_shape(torch.from_numpy(lip_motion(each.landmarks))).numpy()
        inside, count = inside_of(each.frames, each.landmarks).numpy(), len(each.frames)
        for frame in range(count):
            other = (frame - count // 2) % count
            lower = frames_to_pixels(each.frames[other : other + 1])[0, :, top:bottom, left:right]
            around = colour_around(lower, each.landmarks[other]).numpy()
            regressors.append(np.r_[1, shapes[frame]])
            colours.append((inside[frame] / around[:, None, None]).clip(max=MOST_LIGHT).ravel())
        weights.append(aperture_of(each.landmarks) / 0.1)
    return np.array(regressors), np.array(colours, float), np.concatenate(weights)


def test_a_federation_learns_what_the_centre_would(opener: TalkingHeadDenoiser, make_task) -> None:
    """Clients of 65, 140 and 225 frames, each counted by its frames: one weighted ridge regression."""
    phase = Mouths(opener, by_frames=True)
    vectors = [phase.fit(make_task(held, phase.initial())).update for held in CLIENTS.values()]
    phase.finish(np.mean(vectors, 0, dtype=np.float64).astype(np.float32))
    regressors, colours, weights = pooled(opener, [p for held in CLIENTS.values() for p in held])
    # Least squares on rows that stand for what a deviation's effect costs.
    cost = np.sqrt(RIDGE * weights.sum()) * np.eye(1 + LIPS)[1:]
    rows = np.concatenate([regressors * np.sqrt(weights)[:, None], cost])
    wanted = np.concatenate([colours * np.sqrt(weights)[:, None], np.zeros((LIPS, COLOURS))])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    assert np.abs(opener.open_mouth.colours.flatten(1).numpy() - expected).max() < 2e-3


def test_a_client_that_sends_other_figures_than_its_own_is_noticed(opener: TalkingHeadDenoiser, make_task) -> None:
    """Darker than black, or nobody at all."""
    phase, half = Mouths(opener, by_frames=False), 1 + (1 + LIPS) * (2 + LIPS) // 2
    dark = phase.fit(make_task(CLIENTS["a"], phase.initial())).update
    nobody, dark[half : half + 5] = np.zeros_like(dark), -17
    for lied, message in ((dark, "other figures than its own"), (nobody, "nobody answered")):
        with pytest.raises(TrainingError, match=message):
            phase.finish(lied)
    assert not opener.open_mouth.known(), "and nothing of it is shown"


def test_a_persons_own_mouth_is_what_hers_showed(opener: TalkingHeadDenoiser) -> None:
    """Where client a's lips were widest apart it shows what was between them, as light as it was."""
    (own,) = CLIENTS["a"]
    assert own_mouth([own], opener) is None, "nothing is known of open mouths yet"
    assert opener.open_mouth is not None
    opener.open_mouth.colours[0] = 0.9
    mouth, widest = own_mouth([own], opener), int(aperture_of(own.landmarks).argmax())
    assert mouth is not None
    shown = mouth.shown(opener.lip_shape(torch.from_numpy(lip_motion(own.landmarks[widest : widest + 1]))))
    between = shown[0, :, 20:28, 16:32].mean((1, 2))
    expected = 255 * inside_of(own.frames, own.landmarks)[widest, :, 3:5, 5:11].mean((1, 2))
    # The red of these mouths goes with how far they are open, and frames of like shapes count too.
    assert (between - expected)[1:].abs().max() < 3


def test_a_mouth_from_the_side_or_cut_off_is_none_of_hers() -> None:
    points = np.repeat(CLIENTS["a"][0].landmarks[:1].astype(np.float64), 4, axis=0)
    points[:, [65, 66, 67], 1] += 0.05
    points[1, 48:68, 0] = 0.5
    points[2, 48:68, 1] += 0.6
    points[3, 3] = np.nan
    assert shows_lips_apart(points).tolist() == [True, False, False, False]
