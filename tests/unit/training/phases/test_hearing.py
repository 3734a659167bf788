"""Hearing in closed form: what clients say of sound and lips sums up to what the centre would learn, whoever lies."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import NothingToGive, RunError, ShardError, TrainingError
from fedtalk_ray.media.lips import lip_motion
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.privacy.protocol import Limits
from fedtalk_ray.privacy.update_codec import UpdateCodec
from fedtalk_ray.recipe import LARGEST_STATISTICS
from fedtalk_ray.settings import PrivacyConfig
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.own_hearing import OWN_FRAMES, own_hearing
from fedtalk_ray.training.phases.hearing import (
    SHAPES,
    SHARE,
    Hearing,
    check_can_hear,
    moments_of,
    products,
    set_hearing,
)
from fedtalk_ray.training.phases.statistics import FULL
from tests.unit.training.phases.client_answers import answers_of

EMPTY = np.zeros(0)
HOPS, BINS = 22, 12
FEATURES, LIPS = 3 * BINS, 6


def piece(frames: int, seed: int, loud: float = 1.0) -> Piece:
    """Sound of which the first feature, in the middle of a window, says how far the mouth is open; the sixth is large,
    as some of an encoder's are, and two say the same."""
    rng = np.random.default_rng(seed)
    speech = rng.normal(0, 1, (frames, HOPS, BINS)) * loud
    speech[..., 5] = 2 + 2 * speech[..., 5]
    speech[..., 7] = speech[..., 6]
    points = np.tile(np.random.default_rng(0).uniform(0.3, 0.7, (68, 2)), (frames, 1, 1))
    points[:, 36:42, 0], points[:, 42:48, 0] = 0.3, 0.7
    opened = 0.05 + 0.02 * speech[:, 10:12, 0].mean(1) + 0.003 * rng.normal(size=frames)
    points[:, 61:64, 0], points[:, 65:68, 0] = (0.47, 0.5, 0.53), (0.53, 0.5, 0.47)
    points[:, 61:64, 1], points[:, 65:68, 1] = 0.5, 0.5 + opened[:, None].clip(0)
    points[:, 55:60, 1] = 0.55 + opened[:, None].clip(0)
    return Piece("s1", f"clip{seed}", 0, EMPTY, EMPTY, speech.astype(np.float16), EMPTY, landmarks=points.astype("f4"))


def answers(phase: Hearing, held: dict[str, list[Piece]]) -> list[np.ndarray]:
    return answers_of(phase, "hearing", held, ("speech", "landmarks"))


CLIENTS = {"a": [piece(65, 1)], "b": [piece(60, 2), piece(80, 3)], "c": [piece(75, 4 + n) for n in range(5)]}


@pytest.fixture
def hearer(make_denoiser: Callable[..., TalkingHeadDenoiser]) -> TalkingHeadDenoiser:
    """A denoiser that bends its reference and hears linearly, with lip axes of its own and the clients' deviations."""
    ears = {"speech_hops": HOPS, "mel_bins": BINS, "speech": "whisper", "linear_hearing": True}
    denoiser = make_denoiser(bends=(4, 2, 1), region="lower face", **ears)
    torch.nn.init.normal_(denoiser.lip_axes, std=0.2, generator=torch.Generator().manual_seed(0))
    moved = [torch.from_numpy(lip_motion(p.landmarks)) for held in CLIENTS.values() for p in held]
    numbers = denoiser.lip_shape(torch.cat(moved))
    denoiser.lip_mean[0] = numbers[:, 0].mean()
    denoiser.lip_std.copy_(numbers.std(0))
    return denoiser


def pooled(hearer: TalkingHeadDenoiser, pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Features [T, F] by the module's own words, worked out here, and true shapes [T, L]."""
    steps = np.arange(HOPS) - 10.5
    rows = np.stack([np.exp(-(((steps - c) / w) ** 2) / 2) for c, w in ((-4.5, 3), (0, 1), (4.5, 3))])
    rows = rows / rows.sum(1, keepdims=True) * np.sqrt(8 / BINS)
    heard = [np.einsum("sh,thd->tsd", rows, p.speech.astype(float)).reshape(len(p.speech), -1) for p in pieces]
    shapes = [hearer.lip_shape(torch.from_numpy(lip_motion(p.landmarks))).numpy() for p in pieces]
    return np.concatenate(heard), np.concatenate(shapes).astype(float)


def ridge(features: np.ndarray, shapes: np.ndarray, cost: float) -> Callable[[np.ndarray], np.ndarray]:
    """By least squares on rows that stand for what weights cost."""
    middle, mean = features.mean(0), shapes.mean(0)
    count, width = features.shape
    rows = np.concatenate([(features - middle) / np.sqrt(count), np.sqrt(cost) * np.eye(width)])
    wanted = np.concatenate([(shapes - mean) / np.sqrt(count), np.zeros((width, shapes.shape[1]))])
    weights = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return lambda each: (each - middle) @ weights + mean


def test_a_federation_hears_what_the_centre_would(hearer: TalkingHeadDenoiser) -> None:
    """Clients of 65, 140 and 375 frames, of whom each counts by its frames, and one ridge regression over them all."""
    phase = Hearing(hearer, 0.5, by_frames=True)
    phase.finish(np.mean(answers(phase, CLIENTS), 0, dtype=np.float64).astype(np.float32))
    features, shapes = pooled(hearer, [p for held in CLIENTS.values() for p in held])
    expected = ridge(features, shapes, 0.5 * features.var(0).mean())(features)

    with torch.no_grad():
        sound = np.concatenate([p.speech for held in CLIENTS.values() for p in held])
        code = hearer.speech_encoder(torch.from_numpy(sound.astype(np.float32))[None])[0].numpy()
        believed = hearer.heard_shapes(torch.from_numpy(sound.astype(np.float32))).numpy()
    assert np.abs(code[:, :LIPS] - expected).max() < 0.01 * expected.std()
    assert not code[:, LIPS:].any()
    # What a regression says is believed as it is.
    assert np.array_equal(believed, code[:, :LIPS])
    assert np.corrcoef(code[:, 0], shapes[:, 0])[0, 1] > 0.9


def test_where_weights_say_who_counts_how_much_vectors_do_not(hearer: TalkingHeadDenoiser) -> None:
    alike, counted = (answers(Hearing(hearer, 0.5, by_frames=each), CLIENTS) for each in (False, True))
    frames = [65, 140, 375]
    assert [vector[0] / SHARE for vector in alike] == [1, 1, 1]
    assert [vector[0] / SHARE for vector in counted] == pytest.approx([count / FULL for count in frames])
    weighted = np.average(alike, axis=0, weights=frames)
    summed = np.sum(counted, 0)
    assert weighted / weighted[0] == pytest.approx(summed / summed[0], rel=1e-4, abs=1e-5)
    short = {"e": [piece(20, 1)]}
    assert answers(Hearing(hearer, 0.5, by_frames=True), short)[0][0] == pytest.approx(SHARE / 10)
    long = {"d": [piece(75, n) for n in range(9)]}
    assert answers(Hearing(hearer, 0.5, by_frames=True), long)[0][0] == SHARE


def test_the_vector_by_hand(hearer: TalkingHeadDenoiser) -> None:
    """A cosine transform leaves lengths as they are, and its first number is the sum over the root of how many."""
    given = [piece(50, 1), piece(30, 2)]
    vector, frames = products(given, hearer)
    features, shapes = pooled(hearer, given)
    count = FEATURES + LIPS
    assert frames == 80 and len(vector) == 1 + count + count * (count + 1) // 2
    mean, covariance = moments_of(vector, count, LIPS)
    first = features.reshape(80, 3, BINS)[:, 1].sum(1) / np.sqrt(BINS)
    assert mean[BINS] == pytest.approx(first.mean(), rel=1e-4)
    assert covariance[BINS, BINS] == pytest.approx(first.var(), rel=1e-3)
    assert np.trace(covariance[:FEATURES, :FEATURES]) == pytest.approx(features.var(0).sum(), rel=1e-4)
    together = np.mean((first - first.mean()) * (shapes[:, 0] - shapes[:, 0].mean()))
    assert covariance[BINS, FEATURES] == pytest.approx(SHAPES * together, abs=1e-4)
    assert covariance[FEATURES:, FEATURES:] == pytest.approx(SHAPES**2 * np.cov(shapes.T, bias=True), abs=1e-4)


def test_secure_sums_cut_nothing_of_it(hearer: TalkingHeadDenoiser) -> None:
    """Though one feature of twelve is twice as large as the others, and never far from 2."""
    vectors = answers(Hearing(hearer, 0.5, by_frames=True), {str(n): [piece(75, n)] for n in range(8)})
    privacy = PrivacyConfig(clip_norm=LARGEST_STATISTICS)
    codec = UpdateCodec(privacy, 0.0, len(vectors[0]), 8, Limits())
    rng, total = np.random.default_rng(0), np.zeros(codec.length, np.uint32)
    for vector in vectors:
        total += codec.encode(vector, 1.0, LARGEST_STATISTICS, 8, rng)
    averaged = codec.decode(total, 8, 8, LARGEST_STATISTICS)
    assert averaged.unclipped == 1
    assert np.linalg.norm(averaged.update - np.mean(vectors, 0)) <= codec.error_bound(8, 8.0, LARGEST_STATISTICS)
    assert averaged.rounding_error is not None and averaged.rounding_error < 1e-5


def test_clips_without_sound_are_left_out(hearer: TalkingHeadDenoiser) -> None:
    mute = replace(piece(50, 7), speech=np.full((50, HOPS, BINS), 3, np.float16))
    alone, _ = products([piece(50, 1)], hearer)
    both, frames = products([piece(50, 1), mute], hearer)
    assert frames == 50 and np.array_equal(alone, both)
    with pytest.raises(NothingToGive, match="its clips are silent"):
        products([mute], hearer)


def test_clips_that_cannot_be_read_are_named(hearer: TalkingHeadDenoiser) -> None:
    with pytest.raises(ShardError, match=r"clip clip3 of s1 has no landmarks: .*; prepare them again"):
        products([piece(50, 1), replace(piece(40, 3), landmarks=EMPTY)], hearer)
    broken = piece(50, 1)
    broken.speech[3, 2, 1] = np.nan
    with pytest.raises(NothingToGive, match="values that are no numbers"):
        products([broken], hearer)


@pytest.mark.parametrize("lie", ["too much", "backwards", "of quiet features", "of one feature"])
def test_a_client_that_sends_other_figures_than_its_own_is_noticed(hearer: TalkingHeadDenoiser, lie: str) -> None:
    """One of eight, as long as a vector may be. Figures that no clips have would be heard as mouths wide open."""
    phase = Hearing(hearer, 0.5, by_frames=True)
    vectors = answers(phase, {str(n): [piece(75, n) for n in range(n, n + 8)] for n in range(8)})
    count = FEATURES + LIPS
    _, covariance = moments_of(np.mean(vectors, 0), count, LIPS)
    lied, upper = np.zeros((count, count)), np.triu_indices(count)
    vector = vectors[0].astype(np.float64)
    if lie == "too much":
        vector *= LARGEST_STATISTICS / np.linalg.norm(vector)
    elif lie == "backwards":
        vector[1 + count :] *= -LARGEST_STATISTICS / np.linalg.norm(vector)
    else:
        along = np.linalg.eigh(covariance[:FEATURES, :FEATURES])[1][:, :6]
        along = np.eye(FEATURES)[:, :6] if lie == "of one feature" else along
        lied[:FEATURES, FEATURES:] = along
        vector[1 + count :] += 30 * lied[upper] / np.linalg.norm(lied)
    vector *= min(1.0, LARGEST_STATISTICS / np.linalg.norm(vector))
    before = hearer.speech_encoder.linear1.weight.clone()
    with pytest.raises(TrainingError, match="other figures than its own"):
        phase.finish(np.mean([vector, *vectors[1:]], 0).astype(np.float32))
    assert torch.equal(hearer.speech_encoder.linear1.weight, before)


@pytest.mark.parametrize("share", [0.09, 1e-2, 1e-4])
def test_shares_that_cancel_out_are_noticed(hearer: TalkingHeadDenoiser, share: float) -> None:
    """Divided by nearly nothing, lips of honest clips would be hundreds of deviations apart."""
    phase = Hearing(hearer, 0.5, by_frames=True)
    vectors = answers(phase, {str(n): [piece(75, n)] for n in range(8)})
    liar = vectors[0].copy()
    liar[0] = 8 * SHARE * share - sum(vector[0] for vector in vectors[1:])
    with pytest.raises(TrainingError, match="other figures than its own"):
        phase.finish(np.mean([liar, *vectors[1:]], 0))
    liar[0] -= 8 * SHARE
    with pytest.raises(TrainingError, match="products cancel out: nobody answered"):
        phase.finish(np.mean([liar, *vectors[1:]], 0))


@pytest.mark.parametrize("length", [10, 20, 35])
def test_lips_that_no_mouth_has_are_noticed(hearer: TalkingHeadDenoiser, length: float) -> None:
    """A liar adds clips of one quiet feature and torn lips to its own: as products of clips could be."""
    phase = Hearing(hearer, 0.5, by_frames=True)
    vectors = answers(phase, {str(n): [piece(75, 10 * n + k) for k in range(8)] for n in range(8)})
    count = FEATURES + LIPS
    _, covariance = moments_of(np.mean(vectors, 0), count, LIPS)
    torn = np.zeros(count)
    torn[:FEATURES] = np.linalg.eigh(covariance[:FEATURES, :FEATURES])[1][:, 2]
    torn[FEATURES] = 1
    liar = vectors[0].astype(np.float64)
    liar[1 + count :] += length / 2 * np.outer(torn, torn)[np.triu_indices(count)]
    assert np.linalg.norm(liar) < LARGEST_STATISTICS
    with pytest.raises(TrainingError, match="other figures than its own"):
        phase.finish(np.mean([liar, *vectors[1:]], 0).astype(np.float32))


def test_torn_lips_that_pass_move_those_of_honest_clips_little(hearer: TalkingHeadDenoiser) -> None:
    """The same liar, with as much as is not noticed."""
    phase = Hearing(hearer, 0.5, by_frames=True)
    held = {str(n): [piece(75, 10 * n + k) for k in range(8)] for n in range(8)}
    vectors, count = answers(phase, held), FEATURES + LIPS
    _, covariance = moments_of(np.mean(vectors, 0), count, LIPS)
    torn = np.zeros(count)
    torn[:FEATURES] = np.linalg.eigh(covariance[:FEATURES, :FEATURES])[1][:, 2]
    torn[FEATURES] = 1
    sound = torch.from_numpy(np.concatenate([p.speech for pieces in held.values() for p in pieces]).astype(np.float32))
    passed = 0
    for length in np.geomspace(0.01, 30, 25):
        liar = vectors[0].astype(np.float64)
        liar[1 + count :] += length * np.outer(torn, torn)[np.triu_indices(count)]
        try:
            phase.finish(np.mean([liar, *vectors[1:]], 0).astype(np.float32))
        except TrainingError:
            continue
        passed += 1
        assert float(hearer.heard_shapes(sound)[:, 0].std()) < 2
    assert 5 < passed < 25


@pytest.mark.parametrize("seed", range(4))
def test_what_a_liar_may_send_moves_heard_lips_no_more_than_lips_move(hearer: TalkingHeadDenoiser, seed: int) -> None:
    """Clips of its own making, of voices and mouths up to twice as large: of all clips together what is heard varies no
    more than true shapes do."""
    phase = Hearing(hearer, 0.5, by_frames=True)
    held = {str(n): [piece(75, 10 * n + k) for k in range(8)] for n in range(8)}
    rng = np.random.default_rng(seed)
    held["0"] = [piece(75, 100 + k, loud=float(rng.uniform(0.1, 2))) for k in range(8)]
    phase.finish(np.mean(answers(phase, held), 0).astype(np.float32))
    _, shapes = pooled(hearer, [p for pieces in held.values() for p in pieces])
    sound = torch.from_numpy(np.concatenate([p.speech for pieces in held.values() for p in pieces]).astype(np.float32))
    heard = hearer.heard_shapes(sound).numpy()
    assert (heard.var(0) <= 1.02 * shapes.var(0)).all()


def test_lips_are_never_heard_beyond_four_deviations(hearer: TalkingHeadDenoiser) -> None:
    """Whatever map of the sound a liar brought about: with a bias of its own, and weights that no clips have."""
    sound = torch.from_numpy(piece(50, 1).speech.astype(np.float32))
    with torch.no_grad():
        hearer.speech_encoder.linear1.weight.normal_(0, 30, generator=torch.Generator().manual_seed(0))
        hearer.speech_encoder.linear1.bias[0] = 8
    heard = hearer.heard_shapes(sound)
    assert float(heard.abs().max()) == 4 and torch.equal(hearer.codes(sound[None])[0, :, :LIPS], heard)


def test_larger_encoders_are_cut_no_more(make_denoiser) -> None:
    """Whisper-small's 768 features, of three frames in which they are about 1 as an encoder's are."""
    denoiser = make_denoiser(
        bends=(4, 2, 1), region="lower face", speech_hops=HOPS, mel_bins=768, speech="small", linear_hearing=True
    )
    torch.nn.init.normal_(denoiser.lip_axes, std=0.2, generator=torch.Generator().manual_seed(0))
    large = np.random.default_rng(0).normal(0, 1, (200, HOPS, 768)).astype(np.float16)
    vector, _ = products([replace(piece(200, 1), speech=large)], denoiser)
    codec = UpdateCodec(PrivacyConfig(clip_norm=LARGEST_STATISTICS), 0.0, len(vector), 8, Limits())
    assert np.abs(vector).max() * codec.zoom / LARGEST_STATISTICS <= 1 and np.linalg.norm(vector) < LARGEST_STATISTICS
    shapes = denoiser.lip_shape(torch.from_numpy(lip_motion(piece(200, 1).landmarks)))
    mean, _ = moments_of(vector, 3 * 768 + LIPS, LIPS, noisy=True)
    assert mean[-LIPS] / (SHAPES * 1200 / 2310) == pytest.approx(float(shapes[:, 0].mean()), rel=1e-3)


def test_under_noise_what_no_clips_have_is_taken_as_it_is(hearer: TalkingHeadDenoiser) -> None:
    """Noise makes small variances negative; they count as nothing, and larger weights cost more."""
    _, shapes = pooled(hearer, CLIENTS["c"])
    rng = np.random.default_rng(0)
    clean = answers(Hearing(hearer, 5.0, by_frames=False), {"c": CLIENTS["c"]})[0]
    noisy = clean + rng.normal(0, 0.005, len(clean)).astype(np.float32)
    with pytest.raises(TrainingError, match="other figures than its own"):
        Hearing(hearer, 5.0, by_frames=False).finish(noisy)
    Hearing(hearer, 5.0, by_frames=False, noisy=True).finish(noisy)
    sound = torch.from_numpy(np.concatenate([p.speech for p in CLIENTS["c"]]).astype(np.float32))
    heard = hearer.heard_shapes(sound).numpy()
    assert np.isfinite(heard).all() and np.corrcoef(heard[:, 0], shapes[:, 0])[0, 1] > 0.8
    with pytest.raises(TrainingError, match="nobody answered"):
        Hearing(hearer, 5.0, by_frames=False, noisy=True).finish(-noisy)


def test_a_variance_that_noise_made_negative_counts_as_none(hearer: TalkingHeadDenoiser) -> None:
    """One that is as much below 0 as weights cost would be divided by nothing."""
    cost = (FEATURES - 1) / (FEATURES + 1)
    covariance = np.diag(np.r_[-cost, np.ones(FEATURES + LIPS - 1)])
    covariance[0, FEATURES] = covariance[FEATURES, 0] = 0.1
    set_hearing(hearer, np.zeros(FEATURES + LIPS), covariance, 1.0)
    weights = hearer.speech_encoder.linear1.weight.detach()
    assert float(weights.norm()) == pytest.approx(0.1 / SHAPES / cost, rel=1e-3)


def test_sound_in_which_nothing_changes_teaches_nothing(hearer: TalkingHeadDenoiser) -> None:
    still = piece(50, 1)
    still.speech[:] = still.speech[:1]
    vector, _ = products([still], hearer)
    with pytest.raises(TrainingError, match="nothing ever changes"):
        Hearing(hearer, 0.5, by_frames=False).finish(vector.astype(np.float32))


def test_backbones_that_it_cannot_teach_are_refused(make_denoiser, hearer: TalkingHeadDenoiser) -> None:
    """All but one without lip axes, which `units` may give it, before the first phase."""
    with pytest.raises(RunError, match="needs a backbone that knows lip axes, and this one has none; add units"):
        Hearing(make_denoiser(bends=(4, 2, 1), linear_hearing=True), 0.5, by_frames=True)
    check_can_hear(hearer)
    for other in (make_denoiser(linear_hearing=True, speech="whisper"), make_denoiser(bends=(4, 2, 1), speech="w")):
        with pytest.raises(RunError, match="this TalkingHeadDenoiser does not: take speech, or shared: backbone"):
            check_can_hear(other)
    with pytest.raises(RunError, match="and these are log-mel: take speech, or shards"):
        check_can_hear(make_denoiser(bends=(4, 2, 1), linear_hearing=True))


def test_a_backbone_that_hears_linearly_is_saved_and_loaded_as_it_is(hearer: TalkingHeadDenoiser, tmp_path) -> None:
    Hearing(hearer, 0.5, by_frames=False).finish(products(CLIENTS["b"], hearer)[0].astype(np.float32))
    hearer.save_pretrained(tmp_path)
    again = TalkingHeadDenoiser.from_pretrained(tmp_path)
    sound = torch.from_numpy(CLIENTS["a"][0].speech.astype(np.float32))
    assert again.hears_linearly() and torch.equal(again.heard_shapes(sound), hearer.heard_shapes(sound))
    again.hear_by("log-mel", 44, 40)
    assert not again.hears_linearly() and not again.config.linear_hearing


def test_a_persons_own_hearing_is_what_her_lips_do_beyond_everybodys(hearer: TalkingHeadDenoiser) -> None:
    """Client b opens her mouth further than those by whom everybody's map was learned, and lower in it."""
    hers = [wider(each) for each in CLIENTS["b"]]
    Hearing(hearer, 0.5, by_frames=False).finish(products(CLIENTS["c"], hearer)[0].astype(np.float32))
    features, shapes = pooled(hearer, hers)
    sound = torch.from_numpy(np.concatenate([each.speech for each in hers]).astype(np.float32))
    with torch.no_grad():
        before = hearer.speech_encoder(sound[None])[0, :, :LIPS].numpy()
    own = own_hearing(hers, hearer)
    assert own is not None
    cost = OWN_FRAMES / len(features) * features.var(0).mean()
    expected = ridge(features, shapes - before, cost)(features)
    assert features @ own.weight.numpy().T + own.bias.numpy() == pytest.approx(expected, abs=2e-3)
    own.join(hearer.speech_encoder)
    with torch.no_grad():
        after = hearer.speech_encoder(sound[None])[0, :, :LIPS].numpy()
    assert after == pytest.approx(before + expected, abs=3e-3)
    assert np.abs(after - shapes)[:, 0].mean() < 0.75 * np.abs(before - shapes)[:, 0].mean()


def wider(given: Piece) -> Piece:
    """The same words with the lower lip further down, by half of how far lips are apart and a little."""
    points = given.landmarks.copy()
    points[:, 65:68, 1] += 0.5 * (points[:, 65:68, 1] - points[:, 61:64, 1][:, ::-1]) + 0.02
    return replace(given, landmarks=points)


def test_many_frames_of_hers_count_for_more_than_few(hearer: TalkingHeadDenoiser) -> None:
    Hearing(hearer, 0.5, by_frames=False).finish(products(CLIENTS["c"], hearer)[0].astype(np.float32))
    hers = wider(piece(75, 9))
    few, many = own_hearing([hers], hearer), own_hearing([hers] * 40, hearer)
    assert few is not None and many is not None
    assert float(few.weight.norm()) < 0.2 * float(many.weight.norm())


def test_clips_of_which_nothing_is_known_are_left_out_of_her_hearing(hearer: TalkingHeadDenoiser) -> None:
    hers, mute = wider(piece(60, 9)), replace(piece(50, 7), speech=np.full((50, HOPS, BINS), 3, np.float16))
    unseen = replace(hers, landmarks=np.full_like(hers.landmarks, np.nan))
    found, expected = own_hearing([unseen, hers, mute], hearer), own_hearing([hers], hearer)
    assert found is not None and expected is not None
    assert torch.equal(found.weight, expected.weight) and torch.equal(found.bias, expected.bias)
    assert own_hearing([mute, unseen], hearer) is None
    with pytest.raises(ShardError, match="has no landmarks"):
        own_hearing([replace(hers, landmarks=EMPTY)], hearer)


def test_who_does_not_hear_linearly_gives_nobody_a_hearing_of_her_own(make_denoiser) -> None:
    for other in (make_denoiser(), make_denoiser(bends=(4, 2, 1)), torch.nn.Linear(1, 1)):
        assert own_hearing([piece(50, 1)], other) is None
