"""A small formant synthesiser: nonsense speech, and what the lips do while it sounds, a little ahead of it.

A source (glottal pulses with breath noise) runs through five resonators whose frequencies move from phone to phone,
as in Klatt's cascade synthesiser (1980, doi:10.1121/1.383940); hisses and bursts are shaped noise beside it. Vowel
formants are the men's averages of Peterson and Barney (1952), scaled by the speaker's vocal tract.
The lips are driven by the very same phones, so the mouth can be inferred from the sound: they open with the first
formant and the loudness, spread with the second formant, close for m, b and p, and lead the sound a little.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, sosfilt

from fedtalk_ray.media.video import FPS, SAMPLE_RATE

HOP = 80
"""Samples between two control points of the synthesiser, 5 ms: fine enough for a burst, coarse enough to be quick."""

RATE = SAMPLE_RATE // HOP
LIP_SMOOTHING = 0.040
LIP_LEAD = 0.020
"""Seconds over which neighbouring phones blend in the lips, and by which the lips are ahead of the sound."""


class Phone(NamedTuple):
    """One speech sound. f1..f3 in Hz; voice and hiss are amplitudes; ms is its length at the average speaking rate.

    lips: how far the lips part, in units of a wide open vowel. Below zero presses them together, so that a short
    closure still closes after smoothing. None: it follows from f1.
    """

    f1: float
    f2: float
    f3: float
    voice: float
    hiss: float
    hiss_kind: int
    ms: float
    lips: float | None = None


VOWELS = [
    Phone(270, 2290, 3010, 1.0, 0.0, 0, 120),  # beat
    Phone(390, 1990, 2550, 1.0, 0.0, 0, 100),  # bit
    Phone(530, 1840, 2480, 1.0, 0.0, 0, 115),  # bet
    Phone(660, 1720, 2410, 1.0, 0.0, 0, 145),  # bat
    Phone(730, 1090, 2440, 1.0, 0.0, 0, 150),  # father
    Phone(570, 840, 2410, 1.0, 0.0, 0, 145),  # law
    Phone(440, 1020, 2240, 1.0, 0.0, 0, 105),  # foot
    Phone(300, 870, 2240, 1.0, 0.0, 0, 125),  # boot
    Phone(640, 1190, 2390, 1.0, 0.0, 0, 110),  # but
    Phone(490, 1350, 1690, 1.0, 0.0, 0, 125),  # bird
]
CONSONANTS = [
    [Phone(250, 1000, 2200, 0.30, 0.0, 0, 75, -0.55)],  # m
    [Phone(250, 1000, 2200, 0.06, 0.0, 0, 65, -0.60), Phone(350, 1000, 2200, 0.3, 0.25, 2, 15, 0.10)],  # b
    [Phone(250, 1000, 2200, 0.00, 0.0, 0, 80, -0.60), Phone(400, 1000, 2300, 0.0, 0.60, 2, 25, 0.10)],  # p
    [Phone(250, 1700, 2600, 0.05, 0.0, 0, 55, 0.10), Phone(350, 1700, 2600, 0.2, 0.45, 0, 15, 0.15)],  # d
    [Phone(250, 1700, 2600, 0.00, 0.0, 0, 65, 0.10), Phone(400, 1700, 2600, 0.0, 0.80, 0, 25, 0.15)],  # t
    [Phone(250, 1900, 2400, 0.00, 0.0, 0, 65, 0.15), Phone(400, 1900, 2400, 0.0, 0.60, 1, 30, 0.20)],  # k
    [Phone(280, 1700, 2600, 0.32, 0.0, 0, 70, 0.10)],  # n
    [Phone(300, 1800, 2600, 0.00, 0.80, 0, 110, 0.08)],  # s
    [Phone(300, 1500, 2400, 0.00, 0.90, 1, 110, 0.14)],  # sh
    [Phone(300, 1100, 2300, 0.00, 0.25, 2, 95, -0.05)],  # f
    [Phone(360, 1150, 2700, 0.55, 0.0, 0, 65, 0.18)],  # l
    [Phone(330, 1100, 1500, 0.50, 0.0, 0, 70, 0.12)],  # r
    [Phone(290, 650, 2200, 0.45, 0.0, 0, 70, 0.02)],  # w
    [Phone(270, 2200, 3000, 0.45, 0.0, 0, 60, 0.10)],  # y
    [],  # the vowel alone
]
PAUSE = Phone(450, 1450, 2450, 0.0, 0.0, 0, 1000, -0.04)
HISS_BANDS = [(4300, 7600), (2200, 5200), (900, 5500)]
"""Hz. The noise of s, of sh, and of weak sounds made at the lips."""


@dataclass(frozen=True)
class VoiceTraits:
    """What stays the same in everything one person says."""

    height: float
    """0 for a low voice from a long vocal tract, 1 for a high one from a short tract."""
    pitch: float
    """Mean fundamental frequency in Hz."""
    tract: float
    """Factor on every formant frequency: 1 for a long (male) vocal tract, about 1.2 for a short one."""
    breath: float
    """Breath noise relative to the glottal pulses, 0.02 (clear) to 0.3 (breathy)."""
    tempo: float
    """Factor on speed; 1 is about four syllables a second."""
    melody: float
    """How far the pitch swings, in octaves."""
    strength: float
    """How wide the mouth opens for the same sound. No still picture of the person shows it."""


@dataclass(frozen=True)
class Speech:
    """Sound and lips of one clip, in step with each other.

    audio: float32 [T * 640] in [-1, 1] at 16 kHz. opening: float32 [T], 0 (shut) to about 1.2 (wide open vowel, strong
    speaker). spread: float32 [T], 0 (rounded as in "boot") to 1 (spread as in "beat"), 0.45 at rest.
    loudness: float32 [T], 0 to about 1.
    """

    audio: np.ndarray
    opening: np.ndarray
    spread: np.ndarray
    loudness: np.ndarray


def voice_traits(rng: np.random.Generator) -> VoiceTraits:
    """Draw a speaker. Short vocal tracts tend to go with high voices, as in people."""
    height = rng.uniform()
    return VoiceTraits(
        height=float(height),
        pitch=float(95 * 2 ** (1.15 * height + rng.normal(0, 0.12))),
        tract=float(0.95 + 0.25 * height + rng.normal(0, 0.02)),
        breath=float(rng.uniform(0.02, 0.25)),
        tempo=float(rng.uniform(0.85, 1.25)),
        melody=float(rng.uniform(0.08, 0.35)),
        strength=float(rng.uniform(0.72, 1.2)),
    )


def speak(traits: VoiceTraits, frames: int, rng: np.random.Generator, lead: float = LIP_LEAD) -> Speech:
    """Let a speaker say `frames` / 25 seconds of nonsense, with pauses in places that only `rng` knows.

    lead: seconds by which the lips are ahead of the sound; behind it where negative.
    """
    steps = frames * RATE // FPS
    phones, lengths, stress = _script(traits, steps, rng)
    table = np.array([phone[:6] for phone in phones], np.float64)
    lips = np.array([_lips(phone) for phone in phones])
    loud = np.repeat(stress, lengths)[:steps]
    track = np.repeat(table, lengths, axis=0)[:steps]
    voiced = gaussian_filter1d(track[:, 3] * loud**1.5, 0.013 * RATE)
    formants = gaussian_filter1d(track[:, :3], 0.018 * RATE, axis=0) * traits.tract
    audio = _cascade(_source(traits, voiced, rng), formants, traits.tract)
    for kind, band in enumerate(HISS_BANDS):
        level = gaussian_filter1d(track[:, 4] * (track[:, 5] == kind) * loud, 0.004 * RATE)
        noise = sosfilt(butter(2, band, "bandpass", fs=SAMPLE_RATE, output="sos"), rng.normal(0, 0.12, steps * HOP))
        audio += noise * _to_samples(level)
    # A room is never quite silent; it also keeps the logarithm of the sound's spectrum finite.
    audio += rng.normal(0, 4e-4, audio.size)
    return Speech(
        audio=np.tanh(audio).astype(np.float32),
        opening=_to_frames(np.repeat(lips * np.maximum(stress, 0.3), lengths)[:steps], frames, lead, closes=True)
        * np.float32(traits.strength),
        spread=_to_frames(np.clip((track[:, 1] - 800) / 1450, 0, 1), frames, lead),
        loudness=_to_frames(voiced, frames),
    )


def _script(traits: VoiceTraits, steps: int, rng: np.random.Generator) -> tuple[list[Phone], np.ndarray, np.ndarray]:
    """Words of one to four syllables between pauses, until `steps` are filled: phones, lengths in steps, stress."""
    phones, seconds, stress = [PAUSE], [rng.uniform(0.0, 0.6)], [0.0]
    while sum(seconds) * RATE < steps + RATE:
        for _ in range(rng.choice([1, 2, 3, 4], p=[0.3, 0.35, 0.25, 0.1])):
            level = rng.uniform(0.55, 1.0)
            vowel = VOWELS[rng.integers(len(VOWELS))]
            for phone in [*CONSONANTS[rng.integers(len(CONSONANTS))], vowel]:
                stretch = (0.75 + 0.5 * level) if phone is vowel else 1.0
                phones.append(phone)
                seconds.append(phone.ms / 1000 * stretch * rng.uniform(0.85, 1.35) / traits.tempo)
                stress.append(level)
        phones.append(PAUSE)
        seconds.append(rng.choice([rng.uniform(0.06, 0.2), rng.uniform(0.2, 0.75)]) / traits.tempo)
        stress.append(0.0)
    lengths = np.maximum(1, np.round(np.array(seconds) * RATE)).astype(int)
    return phones, lengths, np.array(stress)


def _lips(phone: Phone) -> float:
    return phone.lips if phone.lips is not None else 0.20 + 0.80 * float(np.clip((phone.f1 - 270) / 460, 0, 1))


def _source(traits: VoiceTraits, voiced: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Glottal pulses (the derivative of Rosenberg's pulse) with breath noise where the glottis is open."""
    steps = voiced.size
    wander = gaussian_filter1d(rng.normal(0, 1, steps + 200), 0.15 * RATE)[100 : 100 + steps]
    wander *= traits.melody / 0.09  # unit noise smoothed over 30 steps is left with a deviation of about 0.1
    octaves = 0.35 * np.clip(wander, -2, 2) + 0.15 * (voiced - 0.5) - 0.06 * np.arange(steps) / RATE
    phase = np.cumsum(_to_samples(traits.pitch * 2**octaves)) / SAMPLE_RATE % 1.0
    opening, closing = 0.45, 0.18
    pulse = np.where(phase < opening, np.sin(np.pi * phase / opening) * 0.4, 0.0)
    falling = (phase >= opening) & (phase < opening + closing)
    pulse[falling] = -np.sin(np.pi * 0.5 * (phase[falling] - opening) / closing)
    breath = rng.normal(0, 1, pulse.size) * (0.3 + 0.7 * (phase < opening + closing)) * traits.breath * 0.5
    return (pulse - pulse.mean() + breath) * _to_samples(voiced)


def _cascade(source: np.ndarray, formants: np.ndarray, tract: float) -> np.ndarray:
    """Five resonators in a row, their state carried over the blocks of constant frequency."""
    steps = len(formants)
    upper = np.broadcast_to(np.array([3500.0, 4300.0]) * min(tract, 1.15), (steps, 2))
    centre = np.concatenate([formants, upper], axis=1)
    width = np.array([70.0, 90.0, 130.0, 250.0, 300.0]) * tract
    radius = np.exp(-np.pi * width / SAMPLE_RATE)
    sections = np.zeros((steps, 5, 6))
    sections[:, :, 3] = 1.0
    sections[:, :, 4] = -2 * radius * np.cos(2 * np.pi * centre / SAMPLE_RATE)
    sections[:, :, 5] = radius**2
    sections[:, :, 0] = sections[:, :, 3:].sum(axis=2)  # a gain of one at 0 Hz
    state = np.zeros((5, 2))
    blocks = source.reshape(steps, HOP)
    out = np.empty_like(blocks)
    for step in range(steps):
        out[step], state = sosfilt(sections[step], blocks[step], zi=state)
    sound = out.reshape(-1)
    return 0.55 * (sound - 0.6 * np.concatenate([[0.0], sound[:-1]]))  # the lips radiate high tones better


def _to_samples(track: np.ndarray) -> np.ndarray:
    """Control points [steps] to samples [steps * HOP], linearly."""
    at = (np.arange(track.size * HOP) - HOP / 2) / HOP
    return np.interp(at, np.arange(track.size), track)


def _to_frames(track: np.ndarray, frames: int, lead: float = LIP_LEAD, closes: bool = False) -> np.ndarray:
    """Blend neighbouring phones and read the lips in the middle of each frame, a little ahead of the sound."""
    smooth = gaussian_filter1d(track, LIP_SMOOTHING * RATE * 0.6, mode="nearest")
    if closes:
        smooth = np.maximum(smooth, 0)
    at = ((np.arange(frames) + 0.5) / FPS + lead) * RATE - 0.5
    return np.interp(at, np.arange(track.size), smooth).astype(np.float32)
