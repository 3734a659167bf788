"""Sound that is still coming: whoever waits for it, and what each frame hears of it."""

import threading

import numpy as np
import pytest
import torch

from fedtalk_ray.media.live_sound import FRAME, HEARD_AHEAD, LEVEL_S, LiveSound, LiveSpeech
from fedtalk_ray.media.speech import LogMel


@pytest.fixture
def samples() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)


def test_a_part_is_waited_for_and_cut_where_the_sound_ends(samples: np.ndarray) -> None:
    sound, found = LiveSound(), []
    reading = threading.Thread(target=lambda: found.append(sound[100:1000]))
    reading.start()
    sound.add(samples[:500])
    reading.join(0.1)
    assert reading.is_alive() and sound.asked == 1000
    sound.add(samples[500:2000])
    reading.join(10)
    np.testing.assert_array_equal(found[0], samples[100:1000])
    sound.end()
    np.testing.assert_array_equal(sound[1500:9000], samples[1500:2000])
    assert len(sound) == 2000 and len(sound[5000:6000]) == 0


def test_of_a_whole_short_sound_frames_hear_what_they_hear_of_a_clip(samples: np.ndarray) -> None:
    sound = LiveSound()
    sound.add(samples)
    sound.end()
    places = torch.tensor([[0, 1, 2], [20, 24, 23]])
    heard = LiveSpeech(sound, LogMel(), 100)[places]
    clip = LogMel().windows(samples, 25)
    np.testing.assert_array_equal(heard.numpy(), clip[places.numpy()])


def test_what_merely_came_was_not_waited_for(samples: np.ndarray) -> None:
    """Or nobody would see that a slow speaker stays behind."""
    sound = LiveSound()
    sound.add(samples)
    heard = LiveSpeech(sound, LogMel(), 100)
    before = heard[torch.tensor([[2, 3]])]
    assert sound.asked == 3 * FRAME + HEARD_AHEAD < len(sound)
    sound.add(samples)
    np.testing.assert_array_equal(sound[15_000:17_000], np.concatenate([samples[15_000:], samples[:1000]]))
    assert before.shape == heard[torch.tensor([[2, 3]])].shape


def test_a_long_ago_scream_is_forgotten() -> None:
    """The level is that of the last seconds."""
    rng, seconds = np.random.default_rng(1), LEVEL_S + 5
    quiet = rng.normal(0, 0.001, seconds * 16_000).astype(np.float32)
    loud = quiet.copy()
    loud[:16_000] *= 1000
    place = torch.tensor([[seconds * 25 - 10]])

    def heard(whole: np.ndarray) -> np.ndarray:
        sound = LiveSound()
        sound.add(whole)
        sound.end()
        return LiveSpeech(sound, LogMel(), 1000)[place].numpy()

    np.testing.assert_array_equal(heard(loud), heard(quiet))
