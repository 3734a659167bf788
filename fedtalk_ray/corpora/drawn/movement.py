"""How a drawn person moves while speaking: lips, blinks, gaze, brows and the sway of the head."""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from fedtalk_ray.corpora.drawn.face import Motion
from fedtalk_ray.corpora.drawn.voice import Speech
from fedtalk_ray.media.video import FPS

WIDE_OPEN = 0.33
"""Inner-lip opening of a wide open vowel of an average speaker, in eye distances."""

SWAY = 0.0028
"""Deviation of what alignment leaves of the head's motion, in sides of the crop: 0.18 pixels at 64."""


def move(speech: Speech, mouth_width: float, frames: int, rng: np.random.Generator) -> Motion:
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
