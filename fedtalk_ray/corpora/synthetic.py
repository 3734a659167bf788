"""The embedded corpus: any number of talking people from a seed, with a voice to hear and the truth about their lips.

Nothing is downloaded and nothing is stored: identity 3, clip 5 of seed 0 is the same clip on every machine. Traits of
a person come from (seed, identity) alone, and what they say and how they move from (seed, identity, clip). The frames
are already aligned crops at the geometry of `face_template`.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from fedtalk_ray.corpora.drawn.face import Motion, draw
from fedtalk_ray.corpora.drawn.person import face_traits
from fedtalk_ray.corpora.drawn.voice import Speech, speak, voice_traits
from fedtalk_ray.media.video import FPS, Video

WIDE_OPEN = 0.33
"""Inner-lip opening of a wide open vowel of an average speaker, in eye distances."""

SWAY = 0.0028
"""Deviation of what alignment leaves of the head's motion, in sides of the crop: 0.18 pixels at 64."""


@dataclass(frozen=True)
class SyntheticClip:
    """One clip and what no landmark finder needs to guess.

    video: frames uint8 [T, size, size, 3] and audio float32 [T * 640]. aperture: float32 [T], inner-lip opening over
    eye distance, 0 when shut. width: float32 [T], outer mouth width over eye distance.
    """

    video: Video
    aperture: np.ndarray
    width: np.ndarray


def identity_name(identity: int) -> str:
    """Folder name of one person, as in id0003."""
    return f"id{identity:04d}"


def clip_name(clip: int) -> str:
    """File name of one clip without its ending, as in clip0005."""
    return f"clip{clip:04d}"


def render_clip(identity: int, clip: int, *, seed: int = 0, size: int = 64, seconds: float = 3.0) -> SyntheticClip:
    """Let one person speak for T = round(seconds * 25) frames, in a square crop of `size` pixels.

    The same arguments give the same clip in every process. Raises ValueError for a negative identity, clip or seed,
    for a size below 16, and for a length that rounds to no frame.
    """
    for name, value in (("identity", identity), ("clip", clip), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name} {value} is negative; synthetic clips are numbered from 0")
    if size < 16:
        raise ValueError(f"size {size} is too small for a face; use 16 pixels or more")
    frames = round(seconds * FPS)
    if frames < 1:
        raise ValueError(f"seconds {seconds} is less than one frame; use 1/{FPS} or more")
    person = np.random.default_rng([seed, identity])
    voice = voice_traits(person)
    face = face_traits(person, high_voice=voice.height)
    moment = np.random.default_rng([seed, identity, clip, 1])
    speech = speak(voice, frames, moment)
    motion = _move(speech, face.mouth_width, frames, moment)
    video = Video(draw(face, motion, size), speech.audio)
    return SyntheticClip(video, motion.aperture, motion.width)


def _move(speech: Speech, mouth_width: float, frames: int, rng: np.random.Generator) -> Motion:
    """Lips from the speech; brows partly with its loudness; blinks, gaze and sway from chance alone."""
    aperture = np.float32(WIDE_OPEN) * speech.opening
    width = np.float32(mouth_width) * (0.82 + 0.40 * speech.spread - 0.10 * speech.opening)
    sway = np.stack([_wander(frames, 0.25, rng) for _ in range(3)], axis=1)
    gaze = np.stack([_wander(frames, 0.5, rng), 0.5 * _wander(frames, 0.5, rng)], axis=1)
    lively = gaussian_filter1d(speech.loudness - speech.loudness.mean(), 4) + 0.25 * _wander(frames, 0.4, rng)
    return Motion(
        shift=(SWAY * sway[:, :2]).astype(np.float32),
        turn=(0.006 * sway[:, 2]).astype(np.float32),
        lids=_blinks(frames, rng),
        gaze=(0.005 * gaze).astype(np.float32),
        brows=(0.012 * lively).astype(np.float32),
        aperture=aperture.astype(np.float32),
        width=width.astype(np.float32),
    )


def _wander(frames: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random walk about zero, deviation about 1, within 2.4 of it, whose mean over the clip is zero."""
    margin = 4 * FPS
    walk = gaussian_filter1d(rng.standard_normal(frames + 2 * margin), seconds * FPS)[margin : margin + frames]
    walk = np.clip(walk * np.sqrt(2 * np.sqrt(np.pi) * seconds * FPS), -1.8, 1.8)
    return walk - 0.9 * walk.mean()


def _blinks(frames: int, rng: np.random.Generator) -> np.ndarray:
    """How far the lids are open: 1, and down to 0 for a moment every 2 to 5 seconds."""
    time = np.arange(frames) / FPS
    lids = np.ones(frames)
    at = rng.uniform(0.3, 4.0)
    while at < frames / FPS + 1:
        # Shutting takes 80 ms and opening 160 ms.
        since = time - at
        lids = np.minimum(lids, np.clip(np.where(since < 0, -since / 0.08, (since - 0.03) / 0.16), 0, 1))
        at += rng.uniform(2.0, 5.0)
    return (lids * lids * (3 - 2 * lids)).astype(np.float32)
