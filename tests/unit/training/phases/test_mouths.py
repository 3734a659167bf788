"""What opened lips show, in closed form: what clients send sums up to what the centre would learn, whoever lies."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedtalk_ray.errors import NothingToGive, RunError, ShardError, TrainingError
from fedtalk_ray.media.face_template import region_edges
from fedtalk_ray.media.lips import aperture_of, lip_motion
from fedtalk_ray.model.autoencoder import frames_to_pixels
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.open_mouth import ACROSS, ALONG, MOST_LIGHT, colour_around, inside_of
from fedtalk_ray.model.own_mouth import FILE, MOST_SHAPE, load_own_mouth
from fedtalk_ray.privacy.protocol import Limits
from fedtalk_ray.privacy.update_codec import UpdateCodec
from fedtalk_ray.recipe import LARGEST_STATISTICS
from fedtalk_ray.settings import PrivacyConfig
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.own_mouth import own_mouth, shows_lips_apart
from fedtalk_ray.training.phases.mouths import (
    COLOURS,
    MOST_CHANGE,
    OPEN,
    RIDGE,
    SCALE,
    Mouths,
    check_can_open,
    moments_of,
    products,
    set_mouths,
)
from fedtalk_ray.training.phases.statistics import FULL
from tests.unit.training.phases.client_answers import answers_of

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


def answers(phase: Mouths, held: dict[str, list[Piece]]) -> list[np.ndarray]:
    return answers_of(phase, "mouths", held, ("frames", "landmarks"))


CLIENTS = {
    "a": [piece(65, 1)],
    "b": [piece(60, 2, 120), piece(80, 3, 120)],
    "c": [piece(75, 4 + n, 90) for n in range(5)],
}
EIGHT = {str(n): [piece(75, 10 * n + k, 90 + 20 * n) for k in range(2)] for n in range(8)}


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


def test_a_federation_learns_what_the_centre_would(opener: TalkingHeadDenoiser) -> None:
    """Clients of 65, 140 and 375 frames, each counted by its frames: one weighted ridge regression."""
    phase = Mouths(opener, by_frames=True)
    phase.finish(np.mean(answers(phase, CLIENTS), 0, dtype=np.float64).astype(np.float32))
    regressors, colours, weights = pooled(opener, [p for held in CLIENTS.values() for p in held])
    # Least squares on rows that stand for what a deviation's effect costs.
    cost = np.sqrt(RIDGE * weights.sum()) * np.eye(1 + LIPS)[1:]
    rows = np.concatenate([regressors * np.sqrt(weights)[:, None], cost])
    wanted = np.concatenate([colours * np.sqrt(weights)[:, None], np.zeros((LIPS, COLOURS))])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    made = opener.open_mouth.colours.flatten(1).numpy()
    assert np.abs(made - expected).max() < 2e-3
    # Darker than the skin, and redder the wider it is open; of so small a picture lips are in every colour read.
    middle = made.reshape(-1, 3, ACROSS, ALONG)[:, :, 2:6, 5:11].mean((2, 3))
    assert (middle[0, 1:] < 0.6).all() and middle[0, 0] > middle[0, 1] + 0.1
    opened = np.argsort(regressors[:, 1])
    red = opener.open_mouth.shown(torch.from_numpy(regressors[opened, 1:]).float())[:, 0].mean((1, 2))
    assert red[-50:].mean() > red[:50].mean() + 0.05


def test_the_vector_by_hand(opener: TalkingHeadDenoiser) -> None:
    given = [piece(50, 1), piece(30, 2)]
    vector, frames = products(given, opener)
    regressors, colours, weights = pooled(opener, given)
    half = (1 + LIPS) * (2 + LIPS) // 2
    assert frames == 80 and len(vector) == 1 + half + (1 + LIPS) * COLOURS and vector[0] == SCALE
    assert vector[1] == pytest.approx(SCALE * weights.mean(), rel=1e-5)
    assert vector[1 + half] == pytest.approx(SCALE * (weights * colours[:, 0]).mean(), rel=1e-4)
    squares, together = moments_of(vector, 1 + LIPS)
    assert squares == pytest.approx((regressors * weights[:, None]).T @ regressors / 80, rel=1e-3, abs=1e-4)
    assert together == pytest.approx((regressors * weights[:, None]).T @ colours / 80, rel=1e-3, abs=1e-4)


def test_where_weights_say_who_counts_how_much_vectors_do_not(opener: TalkingHeadDenoiser) -> None:
    alike, counted = (answers(Mouths(opener, by_frames=each), CLIENTS) for each in (False, True))
    frames = [65, 140, 375]
    assert [vector[0] / SCALE for vector in alike] == [1, 1, 1]
    assert [vector[0] / SCALE for vector in counted] == pytest.approx([count / FULL for count in frames])


def test_secure_sums_cut_nothing_of_it(opener: TalkingHeadDenoiser) -> None:
    vectors = answers(Mouths(opener, by_frames=True), EIGHT)
    privacy = PrivacyConfig(clip_norm=LARGEST_STATISTICS)
    codec = UpdateCodec(privacy, 0.0, len(vectors[0]), 8, Limits())
    rng, total = np.random.default_rng(0), np.zeros(codec.length, np.uint32)
    for vector in vectors:
        total += codec.encode(vector, 1.0, LARGEST_STATISTICS, 8, rng)
    averaged = codec.decode(total, 8, 8, LARGEST_STATISTICS)
    assert averaged.unclipped == 1
    assert np.linalg.norm(averaged.update - np.mean(vectors, 0)) <= codec.error_bound(8, 8.0, LARGEST_STATISTICS)


def test_clips_that_say_nothing_are_named(opener: TalkingHeadDenoiser) -> None:
    still = piece(40, 3)
    still.landmarks[:] = still.landmarks[:1]
    still.landmarks[:, 65:68] = still.landmarks[:, [63, 62, 61]]
    with pytest.raises(NothingToGive, match="its lips never part"):
        products([still], opener)
    with pytest.raises(ShardError, match=r"clip clip3 of s1 has no landmarks: .*; prepare them again"):
        products([piece(50, 1), replace(piece(40, 3), landmarks=EMPTY)], opener)
    broken = piece(50, 1)
    broken.landmarks[3, 61] = np.nan
    with pytest.raises(NothingToGive, match="values that are no numbers"):
        products([broken], opener)


def test_lips_torn_apart_count_no_more_than_lips_that_are_wide_open(opener: TalkingHeadDenoiser) -> None:
    torn = piece(50, 1)
    torn.landmarks[:, 65:68, 1] += 0.4
    assert aperture_of(torn.landmarks).min() > 0.5
    vector, _ = products([torn], opener)
    squares, _ = moments_of(vector, 1 + LIPS)
    assert squares[0, 0] == pytest.approx(5) and OPEN * 5 == 0.5


@pytest.mark.parametrize("lie", ["too much", "backwards", "darker than black", "lighter than light", "torn"])
def test_a_client_that_sends_other_figures_than_its_own_is_noticed(opener: TalkingHeadDenoiser, lie: str) -> None:
    """One of eight, as long as a vector may be."""
    phase = Mouths(opener, by_frames=False)
    vectors = answers(phase, EIGHT)
    half = 1 + (1 + LIPS) * (2 + LIPS) // 2
    vector = vectors[0].astype(np.float64)
    if lie == "too much":
        vector *= LARGEST_STATISTICS / np.linalg.norm(vector)
    elif lie == "backwards":
        vector[1:half] *= -LARGEST_STATISTICS / np.linalg.norm(vector[1:half])
    elif lie == "torn":
        vector[1] += 38
    else:
        vector[half : half + 5] = -17 if lie == "darker than black" else 17
    vector *= min(1.0, LARGEST_STATISTICS / np.linalg.norm(vector))
    with pytest.raises(TrainingError, match="other figures than its own"):
        phase.finish(np.mean([vector, *vectors[1:]], 0).astype(np.float32))
    assert not opener.open_mouth.known(), "and nothing of it is shown"


@pytest.mark.parametrize("share", [0.09, 1e-2, 1e-4])
def test_shares_that_cancel_out_are_noticed(opener: TalkingHeadDenoiser, share: float) -> None:
    phase = Mouths(opener, by_frames=True)
    vectors = answers(phase, EIGHT)
    liar = vectors[0].copy()
    liar[0] = 8 * SCALE * share - sum(vector[0] for vector in vectors[1:])
    with pytest.raises(TrainingError, match="other figures than its own"):
        phase.finish(np.mean([liar, *vectors[1:]], 0))
    liar[0] -= 8 * SCALE
    with pytest.raises(TrainingError, match="products cancel out: nobody answered"):
        phase.finish(np.mean([liar, *vectors[1:]], 0))


@pytest.mark.parametrize("attack", ["by the aperture", "at random", "green", "black", "white"])
def test_what_a_liar_may_send_neither_flickers_nor_leaves_its_bounds(opener: TalkingHeadDenoiser, attack: str) -> None:
    """One of eight that knows what the others send, with a vector of any length that passes: the inside of a mouth may
    have another colour, which changes little with the shape."""
    phase = Mouths(opener, by_frames=True)
    vectors, rng = answers(phase, EIGHT), np.random.default_rng(0)
    half = 1 + (1 + LIPS) * (2 + LIPS) // 2
    lie = np.zeros((1 + LIPS, 3, ACROSS, ALONG))
    if attack == "by the aperture":
        lie[1] = 1
    elif attack == "at random":
        lie[1:] = rng.choice([-1, 1], lie[1:].shape)
    elif attack == "green":
        lie[0, 1], lie[0, [0, 2]] = 1, -1
    else:
        lie[0] = -1 if attack == "black" else 1
    worst, passed, stopped = 0.0, 0, 0
    for length in np.geomspace(0.1, 38, 20):
        vector = vectors[0].astype(np.float64)
        vector[half:] += length * lie.ravel() / np.linalg.norm(lie)
        assert np.linalg.norm(vector) < LARGEST_STATISTICS * 1.2
        try:
            phase.finish(np.mean([vector, *vectors[1:]], 0).astype(np.float32))
        except TrainingError:
            stopped += 1
            continue
        passed += 1
        shapes = torch.zeros(2, LIPS)
        shapes[:, 0] = torch.tensor([-1.0, 1.0])
        low, high = opener.open_mouth.shown(shapes)
        worst = max(worst, float((high - low).abs().max()))
    assert passed and stopped and worst <= 2 * MOST_CHANGE + 1e-3


def test_a_large_figure_does_not_hide_others_that_no_clips_have(opener: TalkingHeadDenoiser) -> None:
    """Slack for rounding is of what is looked at, and not of the largest figure that a liar can send."""
    phase = Mouths(opener, by_frames=True)
    vectors = answers(phase, EIGHT)
    half = 1 + (1 + LIPS) * (2 + LIPS) // 2
    mean = np.mean(vectors, 0)
    mean[half + COLOURS] = 4
    mean[half : half + 60] = -0.001 * mean[0]
    with pytest.raises(TrainingError, match="other figures than its own"):
        phase.finish(mean.astype(np.float32))


def test_colours_change_with_a_shape_as_far_as_colours_do(opener: TalkingHeadDenoiser) -> None:
    squares = np.eye(1 + LIPS)
    together = np.zeros((1 + LIPS, COLOURS))
    together[0], together[1], together[2] = 0.7, 0.1, -0.9
    set_mouths(opener, squares, together)
    made = opener.open_mouth.colours.flatten(1)[:, 0].tolist()
    assert made == pytest.approx([0.7, 0.1 / (1 + RIDGE), -MOST_CHANGE, *[0] * (LIPS - 2)], rel=1e-3)


def test_under_noise_what_no_clips_have_is_taken_as_it_is(opener: TalkingHeadDenoiser) -> None:
    clean = answers(Mouths(opener, by_frames=False), {"c": CLIENTS["c"]})[0]
    phase = Mouths(opener, by_frames=False)
    phase.finish(clean)
    true = opener.open_mouth.colours.clone()
    noisy = clean + np.random.default_rng(0).normal(0, 0.01, len(clean)).astype(np.float32)
    Mouths(opener, by_frames=False, noisy=True).finish(noisy)
    assert (opener.open_mouth.colours - true)[0].abs().mean() < 0.05
    with pytest.raises(TrainingError, match="nobody answered"):
        Mouths(opener, by_frames=False, noisy=True).finish(-noisy)


def test_a_mean_square_that_noise_made_negative_says_nothing(opener: TalkingHeadDenoiser) -> None:
    squares = np.diag([1.0, -RIDGE, *np.ones(LIPS - 1)])
    together = np.full((1 + LIPS, COLOURS), 0.1)
    set_mouths(opener, squares, together)
    made = opener.open_mouth.colours.flatten(1)[:, 0].tolist()
    assert made == pytest.approx([0.1, 0, *[0.1 / (1 + RIDGE)] * (LIPS - 1)], rel=1e-3)
    with pytest.raises(TrainingError, match="no client's lips ever part"):
        set_mouths(opener, -squares, together)


def test_who_cannot_show_an_open_mouth_is_refused(make_denoiser, bender: TalkingHeadDenoiser) -> None:
    for other in (make_denoiser(), bender, torch.nn.Linear(1, 1)):
        with pytest.raises(RunError, match=f"phases: mouths fills .* and this {type(other).__name__} has none"):
            check_can_open(other)
    bender.show_open_mouths()
    check_can_open(bender)
    bender.lip_axes.zero_()
    with pytest.raises(RunError, match="knows lip axes, and this one has none; add units"):
        Mouths(bender, by_frames=False)


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
    narrow = int(np.argsort(aperture_of(own.landmarks))[10])
    less = mouth.shown(opener.lip_shape(torch.from_numpy(lip_motion(own.landmarks[narrow : narrow + 1]))))
    assert float(between[0]) > float(less[0, 0, 20:28, 16:32].mean()) + 5
    assert (shown[0, :, 0].mean(1) - expected).abs().max() > 30, "and skin around it"


def test_lips_that_never_part_give_nobody_a_mouth_of_her_own(opener: TalkingHeadDenoiser) -> None:
    assert opener.open_mouth is not None
    opener.open_mouth.colours[0] = 0.9
    shut = replace(CLIENTS["a"][0], landmarks=CLIENTS["a"][0].landmarks.copy())
    shut.landmarks[:, [67, 66, 65]] = shut.landmarks[:, [61, 62, 63]]
    assert own_mouth([shut], opener) is None


def test_of_many_frames_some_are_kept_of_every_clip(
    opener: TalkingHeadDenoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opener.open_mouth is not None
    opener.open_mouth.colours[0] = 0.9
    monkeypatch.setattr("fedtalk_ray.training.own_mouth.MOST_FRAMES", 20)
    mouth = own_mouth(CLIENTS["c"], opener)
    assert mouth is not None
    mouth.save(tmp_path)
    kept = load_file(str(tmp_path / FILE))["shapes"]
    assert 40 < len(kept) <= 80
    for each in CLIENTS["c"]:
        shapes = opener.lip_shape(torch.from_numpy(lip_motion(each.landmarks)))
        of_it = ((kept[:, None] - shapes).abs().amax(2) < 1e-5).any(1)
        assert abs(int(of_it.sum()) - len(kept) / len(CLIENTS["c"])) <= 2


def test_of_more_pieces_than_frames_may_be_kept_the_frames_are_kept_evenly(
    opener: TalkingHeadDenoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece of one frame cannot be halved."""
    assert opener.open_mouth is not None
    opener.open_mouth.colours[0] = 0.9
    monkeypatch.setattr("fedtalk_ray.training.own_mouth.MOST_FRAMES", 2)
    (own,) = CLIENTS["a"]
    apart = [int(place) for place in np.flatnonzero(aperture_of(own.landmarks) > 0)][:20]
    parts = [replace(own, frames=own.frames[[at]], landmarks=own.landmarks[[at]]) for at in apart]
    for number, part in enumerate(parts):
        part.frames[:] = 10 * number
    mouth = own_mouth(parts, opener)
    assert mouth is not None
    mouth.save(tmp_path)
    shades = load_file(str(tmp_path / FILE))["mouths"][:, 0, 0, 0].tolist()
    assert shades == [0, 40, 80, 120, 160]


def test_frames_of_shapes_that_no_file_may_hold_are_not_kept(opener: TalkingHeadDenoiser, tmp_path: Path) -> None:
    """Points that a detector lost move lips by hundreds of deviations."""
    assert opener.open_mouth is not None
    opener.open_mouth.colours[0] = 0.9
    opener.lip_std[1:] /= 3000
    opener.lip_mean[1:] = 0
    mouth = own_mouth(CLIENTS["c"], opener)
    shapes = torch.cat([opener.lip_shape(torch.from_numpy(lip_motion(each.landmarks))) for each in CLIENTS["c"]])
    assert 0 < int((shapes.abs().amax(1) > MOST_SHAPE).sum()) < len(shapes) and mouth is not None
    mouth.save(tmp_path)
    assert load_own_mouth(tmp_path, LIPS) is not None


def test_a_mouth_from_the_side_or_cut_off_is_none_of_hers() -> None:
    points = np.repeat(CLIENTS["a"][0].landmarks[:1].astype(np.float64), 4, axis=0)
    points[:, [65, 66, 67], 1] += 0.05
    points[1, 48:68, 0] = 0.5
    points[2, 48:68, 1] += 0.6
    points[3, 3] = np.nan
    assert shows_lips_apart(points).tolist() == [True, False, False, False]
