"""What the network hears: tones in their bins, level taken out, silence as silence, sound at its own frame."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.media.speech import HOP, MEL_BINS, WINDOW_HOPS, log_mel, speech_windows


def mel(hertz: float | np.ndarray) -> float | np.ndarray:
    return 2595 * np.log10(1 + hertz / 700)


CENTRES = 700 * (10 ** (np.linspace(mel(50), mel(7600), MEL_BINS + 2)[1:-1] / 2595) - 1)
"""Middle of each bin in Hz: 42 points equally spaced in mel, without the two ends."""


def tone(hertz: float, seconds: float = 0.5, amplitude: float = 0.5) -> np.ndarray:
    ticks = np.arange(int(seconds * 16_000)) / 16_000
    return (amplitude * np.sin(2 * np.pi * hertz * ticks)).astype(np.float32)


def click(sample: int, length: int = 16_000) -> np.ndarray:
    audio = np.zeros(length, np.float32)
    audio[sample] = 1.0
    return audio


@pytest.mark.parametrize("number", [6, 12, 20, 30, 39])
def test_a_tone_lights_its_own_bin(number: int) -> None:
    spectra = log_mel(tone(CENTRES[number]))
    middle = spectra[10:-10]
    assert (middle.argmax(axis=1) == number).all()
    away = [index for index in range(MEL_BINS) if abs(index - number) > 4]
    assert (middle[:, away].max(axis=1) < middle[:, number] - 1).all(), "20 dB quieter a few bins away"


def test_a_bin_follows_the_energy_of_its_tone() -> None:
    """A second tone of a tenth of the amplitude is 20 dB below, one unit."""
    spectra = log_mel(tone(CENTRES[12]) + 0.1 * tone(CENTRES[28]))[10:-10].mean(axis=0)
    width = {12: CENTRES[13] - CENTRES[11], 28: CENTRES[29] - CENTRES[27]}
    assert width[28] > 1.5 * width[12], "the filters differ, their peaks do not"
    assert spectra[12] - spectra[28] == pytest.approx(1.0, abs=0.12)


def speechlike(seed: int = 0) -> np.ndarray:
    """Noise that comes and goes, far above the floor."""
    rng = np.random.default_rng(seed)
    envelope = 0.05 + np.abs(np.sin(np.arange(16_000) / 1500))
    return (0.2 * envelope * rng.standard_normal(16_000)).astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.02, 4))
def test_the_level_of_a_clip_does_not_matter(gain: float) -> None:
    audio = speechlike()
    np.testing.assert_allclose(log_mel(audio * np.float32(gain)), log_mel(audio), atol=2e-3)


def test_the_loud_part_is_at_0_and_60_db_below_is_silence() -> None:
    spectra = log_mel(speechlike())
    assert np.quantile(spectra, 0.95) == pytest.approx(0, abs=0.02)
    audio = np.concatenate([speechlike(), 1e-4 * speechlike(1)])
    assert (log_mel(audio)[110:] == -3).mean() > 0.99
    assert log_mel(audio).min() == -3


@pytest.mark.parametrize("samples", [1, 640, 16_000])
def test_silence_is_heard_as_silence(samples: int) -> None:
    """And not as its own loudest part: a mouth must not move to nothing."""
    assert (log_mel(np.zeros(samples, np.float32)) == -3).all()
    assert (speech_windows(np.zeros(samples, np.float32), 5) == -3).all()


def test_a_word_in_a_long_silence_is_loud_and_the_silence_is_silent() -> None:
    """Digital silence around a short word: fewer than one in twenty spectra hold any sound."""
    audio = np.zeros(160_000, np.float32)
    audio[80_000:83_200] = speechlike()[:3200]
    spectra = log_mel(audio)
    assert (spectra[:495] == -3).all() and (spectra[525:] == -3).all()
    assert 0 < spectra[502:518].max() < 2.5


@pytest.mark.parametrize(("samples", "hops"), [(1600, 11), (1601, 11), (16_000, 101), (0, 1)])
def test_a_spectrum_every_10_ms(samples: int, hops: int) -> None:
    spectra = log_mel(tone(300, 2)[:samples])
    assert spectra.shape == (hops, MEL_BINS) and spectra.dtype == np.float32 and np.isfinite(spectra).all()


@pytest.mark.parametrize("frame", [0, 1, 7, 20])
@pytest.mark.parametrize("offset", [0, 160, 320])
def test_a_click_is_heard_at_its_own_moment(frame: int, offset: int) -> None:
    """A frame's window begins 200 ms before it, in hops of 10 ms: a click at its start is hop 20, 10 ms later hop 21.

    The frame two later hears the same click 80 ms earlier in its window; others do not hear it at all.
    """
    windows = speech_windows(click(frame * 640 + offset, 25_600), 40)
    hop = 20 + offset // HOP
    assert windows[frame].sum(axis=1).argmax() == hop
    assert windows[frame + 2].sum(axis=1).argmax() == hop - 8
    loudest = windows.max(axis=(1, 2))
    assert loudest[frame + 7] < loudest[frame] - 1, "280 ms later it is over"
    if frame >= 7:
        assert loudest[frame - 7] < loudest[frame] - 1, "280 ms before, it is not there yet"


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 30_000), frames=st.integers(1, 60))
def test_every_frame_has_a_window_whatever_the_sounds_length(samples: int, frames: int) -> None:
    windows = speech_windows(speechlike().repeat(2)[:samples], frames)
    assert windows.shape == (frames, WINDOW_HOPS, MEL_BINS) and windows.dtype == np.float32
    assert windows.min() >= -3
    over = -(-samples // 640) + 6
    assert (windows[over:] == -3).all(), "silence beyond the end"


def test_windows_overlap_by_four_hops_a_frame() -> None:
    windows = speech_windows(speechlike(), 25)
    for frame in range(24):
        assert (windows[frame, 4:] == windows[frame + 1, :-4]).all()
    spectra = log_mel(speechlike())
    assert (windows[5] == spectra[5 * 4 - 20 : 5 * 4 + 24]).all()
    assert (windows[0, :20] == -3).all()


@pytest.mark.parametrize("samples", [0, 159, 160, 4799, 4800, 16_000])
def test_a_long_sound_in_parts_is_the_whole_sound(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No seam where one part of the spectra ends and the next begins."""
    whole = log_mel(speechlike()[:samples])
    monkeypatch.setattr("fedtalk_ray.media.speech._HOPS_AT_ONCE", 10)
    np.testing.assert_allclose(log_mel(speechlike()[:samples]), whole, atol=1e-5)


def test_the_windows_of_a_long_sound_take_little_more_than_its_spectra() -> None:
    """Eleven windows hear each spectrum, and it lies in memory once."""
    windows = speech_windows(np.zeros(60 * 16_000, np.float32), 1500)
    assert windows.base is not None and windows.strides[0] == 4 * windows.strides[1]
