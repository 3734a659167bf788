"""What training clips could also have looked and sounded like: the same window, seen and heard a little differently.

A few dozen clips hold a few voices and a few heads: without this the network learns whose clip it hears, not what is
said, and where that head was, not how its lips move.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from fedtalk_ray.media.lips import MIRRORED_FACE
from fedtalk_ray.media.speech import LOG_MEL, SILENCE
from fedtalk_ray.model.autoencoder import encode_pixels, frames_to_pixels
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.shards.windows import PictureBatch, WindowBatch

FEATURE_NOISE = 0.6
"""Of what a speech model hears, in units of its spread: its hundreds of numbers tell one clip from all others. With 0.1
/ 0.3 / 0.6 / 1 lips of eight unseen GRID speakers were heard with a correlation of 0.74 / 0.79 / 0.82 / 0.83, new clips
of the seven who taught with 0.79 / 0.79 / 0.82 / 0.81."""


def vary_windows(pipeline: TalkingHeadPipeline, batch: PictureBatch, rng: np.random.Generator) -> WindowBatch:
    """Windows seen and heard a little differently, each with its reference alike; lips are as they were.

    Mirrored pictures have the same lip shapes (`media.lips.lip_motion`).
    """
    pixels, speech, points = vary_seen_and_heard(batch, rng, bare_denoiser(pipeline.denoiser).config.speech)
    latents = encode_pixels(pipeline.autoencoder, pixels.flatten(0, 1).to(pipeline.autoencoder.device)).cpu()
    latents = latents.unflatten(0, (len(batch), -1))
    lips = batch.lips, batch.reference_lips
    return WindowBatch(latents[:, 1:], speech, latents[:, 0], batch.identity, *lips, points)


def vary_seen_and_heard(
    batch: PictureBatch, rng: np.random.Generator, speech: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels float32 [B, 1 + T, 3, S, S] in [-1, 1], the reference first, sounds float32 [B, T, hops, bins], and where
    the references' points have come to lie, [B, 68, 2].

    speech: which features the sounds are.
    """
    seen = torch.cat([batch.reference[:, None], batch.frames], dim=1).numpy()
    views = [View.drawn(rng) for _ in seen]
    pixels = torch.stack([view.of_pictures(window) for view, window in zip(views, seen, strict=True)])
    points = np.stack([view.of_points(face) for view, face in zip(views, batch.reference_points.numpy(), strict=True)])
    sounds = [vary_speech(window.numpy(), rng, speech == LOG_MEL) for window in batch.speech]
    return pixels, torch.from_numpy(np.stack(sounds)), torch.from_numpy(points)


@dataclass(frozen=True)
class View:
    """How a window is seen: mirrored or not, moved, and relit by channel.

    transform: float32 [2, 3], from places in the view to those in the crop, after mirroring, both in [-1, 1].
    """

    mirrored: bool
    transform: np.ndarray
    gain: np.ndarray
    lift: np.ndarray

    @staticmethod
    def drawn(rng: np.random.Generator) -> "View":
        mirrored = rng.random() < 0.5
        turn, zoom = rng.normal(0, 0.03), np.exp(rng.normal(0, 0.03))
        cosine, sine = np.cos(turn) * zoom, np.sin(turn) * zoom
        shift = rng.normal(0, 0.03, 2)
        gain = np.exp(rng.normal(0, 0.1) + rng.normal(0, 0.04, 3))
        lift = rng.normal(0, 0.06) + rng.normal(0, 0.02, 3)
        transform = np.array([[cosine, -sine, shift[0]], [sine, cosine, shift[1]]])
        return View(mirrored, *(each.astype(np.float32) for each in (transform, gain, lift)))

    def of_pictures(self, frames: np.ndarray) -> torch.Tensor:
        """Frames uint8 [T, S, S, 3] as pixels float32 [T, 3, S, S] in [-1, 1]."""
        pixels = frames_to_pixels(frames)
        if self.mirrored:
            pixels = pixels.flip(3)
        transform = torch.from_numpy(self.transform).expand(len(pixels), 2, 3)
        grid = F.affine_grid(transform, list(pixels.shape), align_corners=False)
        # Bicubic: between four pixels a bilinear picture is a soft one, and the network would learn to make soft ones.
        pixels = F.grid_sample(pixels, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        gain, lift = (torch.from_numpy(each)[:, None, None] for each in (self.gain, self.lift))
        return (pixels * gain + lift).clamp(-1, 1)

    def of_points(self, points: np.ndarray) -> np.ndarray:
        """The 68 points of a face, or none: float32 [68, 2], in fractions of the crop."""
        if not len(points):
            return points
        if self.mirrored:
            points = points[MIRRORED_FACE] * (-1, 1) + (1, 0)
        there = (2 * points - 1 - self.transform[:, 2]) @ np.linalg.inv(self.transform[:, :2]).T
        return ((there + 1) / 2).astype(np.float32)


def vary_speech(speech: np.ndarray, rng: np.random.Generator, log_mel: bool = True) -> np.ndarray:
    """Feature windows float32 [T, hops, bins] of one clip as another voice, microphone and room would give them.

    log_mel: the bins are log-mel bands, so a vocal tract is a stretch, a microphone a curve and a room a floor. Other
    features only get noise, `FEATURE_NOISE`.
    """
    if not log_mel:
        return (speech + rng.normal(0, FEATURE_NOISE * speech.std(), speech.shape)).astype(np.float32)
    bins = speech.shape[-1]
    place = np.clip(np.arange(bins) * np.exp(rng.normal(0, 0.08)), 0, bins - 1)
    low = np.minimum(place.astype(int), bins - 2)
    part = (place - low).astype(np.float32)
    varied = speech[..., low] * (1 - part) + speech[..., low + 1] * part
    curve = np.interp(np.arange(bins), np.linspace(0, bins - 1, 6), rng.normal(0, 0.2, 6))
    tilt = np.linspace(-1, 1, bins) * rng.normal(0, 0.15)
    varied = varied + curve + tilt + rng.normal(0, 0.15) + rng.normal(0, 0.1, speech.shape)
    first, width = rng.integers(0, bins - 4), rng.integers(0, 6)
    varied[..., first : first + width] = SILENCE / 2
    return np.maximum(varied, SILENCE + abs(rng.normal(0, 0.7))).astype(np.float32)
