"""The embedded corpus: repeatable, in range, lips that follow their own sound and that a landmark finder can read."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.corpora.drawn.puppets import puppet_voice
from fedtalk_ray.corpora.drawn.voice import Speech, speak, voice_traits
from fedtalk_ray.corpora.listing import synthetic


def digest(clip: synthetic.SyntheticClip) -> str:
    parts = (clip.video.frames, clip.video.audio, clip.aperture, clip.width)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def loudness(audio: np.ndarray) -> np.ndarray:
    """Logarithm of each frame's root mean square, [T]."""
    return np.log(np.sqrt((audio.reshape(-1, 640) ** 2).mean(1)) + 1e-3)


def speech_of(identity: int) -> Speech:
    return speak(voice_traits(np.random.default_rng([5, identity])), 75, np.random.default_rng([6, identity]))


@pytest.mark.nightly
def test_same_arguments_give_the_same_clip_in_another_process():
    here = digest(synthetic.render_clip(3, 5, seed=7, size=16, seconds=0.4))
    program = (
        "import hashlib; from fedtalk_ray.corpora.synthetic import render_clip;"
        "c = render_clip(3, 5, seed=7, size=16, seconds=0.4);"
        "parts = (c.video.frames, c.video.audio, c.aperture, c.width);"
        "print(hashlib.sha256(b''.join(part.tobytes() for part in parts)).hexdigest())"
    )
    root = Path(synthetic.__file__).parents[2]
    variants = [(4, 5, 7), (3, 6, 7), (3, 5, 8), (5, 3, 7), (7, 5, 3)]
    made = [digest(synthetic.render_clip(i, c, seed=s, size=16, seconds=0.4)) for i, c, s in variants]
    assert len({here, *made}) == 6, "seed, identity and clip each change it"
    there = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_lips_follow_their_own_sound_and_no_other():
    speeches = [speech_of(identity) for identity in range(12)]
    levels = [loudness(speech.audio) for speech in speeches]
    table = np.array([[np.corrcoef(speech.opening, level)[0, 1] for level in levels] for speech in speeches])
    own, others = np.diag(table), table[~np.eye(12, dtype=bool)]
    assert own.min() > 0.4 and all(0.02 < np.sqrt((speech.audio**2).mean()) < 0.3 for speech in speeches)
    assert all(0.1 < np.abs(speech.audio).max() < 0.999 for speech in speeches)
    assert abs(others.mean()) < 0.15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"identity": -1, "clip": 0}, "identity -1 is negative"),
        ({"identity": 0, "clip": 0, "size": 8}, "size 8 is too small"),
        ({"identity": 0, "clip": 0, "seconds": 0.01}, "seconds 0.01 is less than one frame"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        synthetic.render_clip(**arguments)


def test_a_puppets_lips_come_after_its_sound() -> None:
    """The same speaker's: four frames later than a person's (0.14 s behind and not 0.02 s ahead), and else alike."""
    voice = puppet_voice(np.random.default_rng(0))
    ahead, behind = (speak(voice, 75, np.random.default_rng(1), lead) for lead in (0.02, -0.14))
    assert (ahead.audio == behind.audio).all()
    assert np.corrcoef(ahead.opening[:-4], behind.opening[4:])[0, 1] > 0.999
