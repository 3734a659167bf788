"""What the network hears: tones in their bins, level taken out, silence as silence, sound at its own frame."""

import numpy as np
import pytest

from fedtalk_ray.media.speech import MEL_BINS, log_mel, speech_windows


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


@pytest.mark.parametrize("number", [6, 20, 39])
def test_a_tone_lights_its_own_bin(number: int) -> None:
    spectra = log_mel(tone(CENTRES[number]))
    middle = spectra[10:-10]
    assert (middle.argmax(axis=1) == number).all()
    away = [index for index in range(MEL_BINS) if abs(index - number) > 4]
    assert (middle[:, away].max(axis=1) < middle[:, number] - 1).all(), "20 dB quieter a few bins away"


def speechlike(seed: int = 0) -> np.ndarray:
    """Noise that comes and goes, far above the floor."""
    rng = np.random.default_rng(seed)
    envelope = 0.05 + np.abs(np.sin(np.arange(16_000) / 1500))
    return (0.2 * envelope * rng.standard_normal(16_000)).astype(np.float32)


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


@pytest.mark.parametrize(("samples", "hops"), [(1600, 11), (1601, 11), (16_000, 101), (0, 1)])
def test_a_spectrum_every_10_ms(samples: int, hops: int) -> None:
    spectra = log_mel(tone(300, 2)[:samples])
    assert spectra.shape == (hops, MEL_BINS) and spectra.dtype == np.float32 and np.isfinite(spectra).all()


def test_windows_overlap_by_four_hops_a_frame() -> None:
    windows = speech_windows(speechlike(), 25)
    for frame in range(24):
        assert (windows[frame, 4:] == windows[frame + 1, :-4]).all()
    spectra = log_mel(speechlike())
    assert (windows[5] == spectra[5 * 4 - 20 : 5 * 4 + 24]).all()
    assert (windows[0, :20] == -3).all()
    assert log_mel(click(1600)).sum(axis=1).argmax() == 10


@pytest.mark.parametrize("samples", [0, 160, 4799, 4800])
def test_a_long_sound_in_parts_is_the_whole_sound(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No seam where one part of the spectra ends and the next begins."""
    whole = log_mel(speechlike()[:samples])
    monkeypatch.setattr("fedtalk_ray.media.speech._HOPS_AT_ONCE", 10)
    np.testing.assert_allclose(log_mel(speechlike()[:samples]), whole, atol=1e-5)
