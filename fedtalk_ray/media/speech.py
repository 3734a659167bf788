"""What the network hears: a window of sound features for each video frame, log-mel spectra unless asked otherwise."""

from functools import cache
from typing import Protocol

import numpy as np
import torch

from fedtalk_ray.media.video import FPS, SAMPLE_RATE

LOG_MEL = "log-mel"
"""The name under which commands and manifests ask for this module's own features."""

PRETRAINED = "openai/whisper-tiny"
"""The hub id of a small speech model for real voices. Its English sister, Whisper-tiny.en, tells lips better than
log-mel spectra do (figures: `speech_encoder.WINDOW_FRAMES`)."""

HOP = 160
"""Samples between two spectra: 10 ms, so four spectra a video frame."""

MEL_BINS = 40
WINDOW_HOPS = 44
"""Spectra that one frame hears: 200 ms before its start to 240 ms after. Lips prepare a sound and end it: regressing
lip aperture on sound, three folds of unseen GRID speakers, 200 ms in all gave a correlation of 0.69 where somebody
speaks, and 440 ms 0.73."""

SILENCE = -3.0
"""The log-mel value of silence, its smallest."""

SPOKEN_DB = 12.0
"""A frame counts as spoken when its sound is at most this far below the loud frames (the 95th percentile)."""

_FFT = 512
_HOPS_PER_FRAME = SAMPLE_RATE // HOP // FPS
_HOPS_BEFORE = 20
_HOPS_AT_ONCE = 6000  # a minute: the spectra of a long sound are thirteen times its size


class SpeechFeatures(Protocol):
    """Sound to windows. source: as `load_speech_features` was given it. shape: (hops, bins) of one window."""

    source: str
    shape: tuple[int, int]

    def windows(self, audio: np.ndarray, frames: int) -> np.ndarray:
        """What each of `frames` video frames hears, float32 [frames, hops, bins]; silence beyond the ends.

        audio: mono float32 [N] at `SAMPLE_RATE`, of any length, sample 0 at the start of frame 0.
        """
        ...


def load_speech_features(source: str = LOG_MEL) -> SpeechFeatures:
    """The features that `source` names: "log-mel", a Whisper, wav2vec2, HuBERT or WavLM folder or hub id, or
    "musetalk:" and that of a Whisper-tiny.

    Raises `speech_encoder.SpeechError` when there is no such model, it cannot be used, or transformers is missing.
    """
    if source == LOG_MEL:
        return LogMel()
    from fedtalk_ray.media.speech_encoder import load_speech_encoder
    from fedtalk_ray.media.whisper_states import PREFIX, WhisperStates

    if source.startswith(PREFIX):
        return WhisperStates(source)
    return load_speech_encoder(source)


class LogMel:
    """`speech_windows` behind the interface `SpeechFeatures`."""

    source = LOG_MEL
    shape = (WINDOW_HOPS, MEL_BINS)

    def windows(self, audio: np.ndarray, frames: int) -> np.ndarray:
        return speech_windows(audio, frames)


def log_mel(audio: np.ndarray) -> np.ndarray:
    """Level-normalised log-mel spectra, float32 [hops, MEL_BINS], of mono sound float32 [N] at `SAMPLE_RATE`.

    The clip's 95th percentile is moved to 0, so a far microphone sounds like a near one; one unit is 20 dB
    and everything 60 dB below that loud level counts as silence (-3).
    """
    decibel = np.empty((1 + len(audio) // HOP, MEL_BINS), np.float32)
    for begin in range(0, len(decibel), _HOPS_AT_ONCE):
        end = min(begin + _HOPS_AT_ONCE, len(decibel))
        first, last = begin * HOP - _FFT // 2, (end - 1) * HOP + _FFT // 2
        wave = np.pad(audio[max(0, first) : last], (max(0, -first), max(0, last - len(audio))))
        spectrum = torch.stft(
            torch.from_numpy(wave.astype(np.float32)), _FFT, HOP, win_length=400, window=torch.hann_window(400),
            center=False, return_complex=True,
        )  # fmt: skip
        decibel[begin:end] = 10 * torch.log10((_mel_filters() @ spectrum.abs().square()).T + 1e-10)
    # A short word in a long silence must not make the silence the loud level, nor silence itself.
    loud = np.float32(max(float(np.quantile(decibel, 0.95)), float(decibel.max()) - 40, -40))
    return np.maximum((decibel - loud) / 20, np.float32(SILENCE))


@cache
def _mel_filters() -> torch.Tensor:
    """Triangular filters [MEL_BINS, bins], equally spaced on O'Shaughnessy's mel scale from 50 Hz to 7.6 kHz."""
    mel = np.linspace(2595 * np.log10(1 + 50 / 700), 2595 * np.log10(1 + 7600 / 700), MEL_BINS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    bins = np.linspace(0, SAMPLE_RATE / 2, _FFT // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32))


def speech_windows(audio: np.ndarray, frames: int) -> np.ndarray:
    """What each of `frames` video frames hears, float32 [frames, WINDOW_HOPS, MEL_BINS]; silence beyond the ends.

    A view that overlaps itself, eleven times smaller than it looks: copy what is to be written to.
    """
    mel = log_mel(audio)
    after = max(0, frames * _HOPS_PER_FRAME + WINDOW_HOPS - len(mel))
    padded = np.pad(mel, ((_HOPS_BEFORE, after), (0, 0)), constant_values=SILENCE)
    hop, cell = padded.strides
    shape = (frames, WINDOW_HOPS, MEL_BINS)
    return np.lib.stride_tricks.as_strided(padded, shape, (_HOPS_PER_FRAME * hop, hop, cell))


def spoken(audio: np.ndarray, frames: int) -> slice:
    """The frames from the first to the last spoken one, for `lip_aperture(...)[spoken(audio, T)]`.

    audio: float32 [N] at `SAMPLE_RATE`, sample 0 at the start of frame 0; frames: how many the clip has. Pauses in
    between stay in. Pure silence, or sound shorter than one frame, gives the whole clip.
    """
    hop = SAMPLE_RATE // FPS
    pieces = audio[: min(frames, len(audio) // hop) * hop].reshape(-1, hop).astype(np.float64)
    if not pieces.any():
        return slice(0, frames)
    power = (pieces**2).mean(axis=1)
    loud = np.flatnonzero(power >= np.percentile(power, 95) * 10 ** (-SPOKEN_DB / 10))
    return slice(int(loud[0]), int(loud[-1]) + 1)
