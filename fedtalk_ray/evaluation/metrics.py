"""How near a generated clip comes to the real one: picture quality, steadiness, and agreement of two series.

Clips are uint8 [T, H, W, 3]. Whole-frame PSNR rewards doing nothing (copying the first frame scores well), so read it
beside the mouth's PSNR, the jitter and the correlation of the lips (`fedtalk_ray.media.lips`).
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from fedtalk_ray.media.compositing import mask_of
from fedtalk_ray.media.face_template import mouth_mask

PSNR_CEILING = 10 * float(np.log10(255.0**2 * 12))
"""dB, 58.9: what rounding to 8 bits costs (1/12 of a squared level). Equal frames score this and not infinity."""


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB: one figure a frame, at most `PSNR_CEILING`, then the mean over frames.

    a, b: uint8 [T, H, W, 3]. Raises `ValueError` when they differ in shape or are no clips.
    """
    _check_pair(a, b)
    return _mean_psnr(a.reshape(len(a), -1), b.reshape(len(b), -1))


def mouth_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """`psnr` of the mouth region of `face_template` alone. a, b: uint8 [T, S, S, 3], aligned square crops."""
    _check_crops(a, b)
    inside = mouth_mask(a.shape[1]).astype(bool)
    return _mean_psnr(a[:, inside].reshape(len(a), -1), b[:, inside].reshape(len(b), -1))


AT_ONCE = 15
"""Frames of which SSIM is computed at once: half of the time that one after the other takes, and a bounded memory."""


@torch.no_grad()
def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity in [-1, 1] (Gaussian window of sigma 1.5), the mean over frames; float32, good to 0.0005.

    a, b: uint8 [T, H, W, 3] with H and W of at least 11. Raises `ValueError` as `psnr` does.
    """
    # torchmetrics loads scipy and matplotlib: a quarter of the start of a slot, which measures pictures last of all.
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_pair(a, b)
    if min(a.shape[1:3]) < 11:
        raise ValueError(f"SSIM's window is 11 pixels wide; these frames are {a.shape[2]}x{a.shape[1]}")
    total = 0.0
    # In bfloat16 rounding swamps SSIM's variances: a training loop's autocast must not reach in here.
    with torch.autocast("cpu", enabled=False):
        for begin in range(0, len(a), AT_ONCE):
            parts = (frames[begin : begin + AT_ONCE].transpose(0, 3, 1, 2) for frames in (a, b))
            one, other = (torch.from_numpy(part.astype(np.float32)) for part in parts)
            likeness = structural_similarity_index_measure(one, other, reduction="sum", data_range=255.0)
            total += float(torch.as_tensor(likeness))
    return total / len(a)


def sharpness_ratio(generated: np.ndarray, truth: np.ndarray) -> float:
    """How sharp the mouth region is, over the truth: 1 is as sharp, less is softer, more rougher.

    generated, truth: uint8 [T, S, S, 3], aligned square crops. Sharpness is the energy of the Laplacian of brightness,
    its mean square over the region and the frames. Against a blank truth it is infinite, 1 for a blank.
    """
    _check_crops(generated, truth)
    ours, theirs = (_laplacian_energy(clip) for clip in (generated, truth))
    if theirs == 0.0:
        return 1.0 if ours == 0.0 else float("inf")
    return ours / theirs


def seam_ratio(generated: np.ndarray, truth: np.ndarray) -> float:
    """How steep brightness is across the border of what is painted, over the truth: a hard seam raises it, and what is
    softer there than the truth lowers it, so read it beside the sharpness.

    generated, truth: uint8 [T, S, S, 3], aligned square crops. The border is where a face is laid softly over its
    picture (`media.compositing.mask_of`); steepness is the mean size of the slope at right angles to it. Against a
    blank truth it is infinite, 1 for a blank.
    """
    _check_crops(generated, truth)
    mask = mask_of(generated.shape[1])
    down, across = np.gradient(mask)
    border = (mask > 0) & (mask < 1)
    length = np.hypot(down, across)[border] + 1e-12
    ours, theirs = (
        _steepness(clip, border, down[border] / length, across[border] / length) for clip in (generated, truth)
    )
    if theirs == 0.0:
        return 1.0 if ours == 0.0 else float("inf")
    return ours / theirs


def temporal_jitter(frames: np.ndarray) -> float:
    """Mean |x[t+1] - x[t]| over a clip, 0 for a still and 1 for black to white. frames: uint8 [T, H, W, 3], T > 1."""
    _check_clip(frames)
    return _mean_absolute(_steps(frames))


def jitter_ratio(generated: np.ndarray, truth: np.ndarray) -> float:
    """`temporal_jitter` of the generated clip over the truth's: 1 moves as much, 0 is a still, above 1 flickers.

    The clips may differ in length. Against a still truth it is 1 for a still and infinite for anything else.
    """
    ours, theirs = temporal_jitter(generated), temporal_jitter(truth)
    if theirs == 0.0:
        return 1.0 if ours == 0.0 else float("inf")
    return ours / theirs


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two series [T], in [-1, 1].

    Places where either value is not finite are left out. A series that is constant, or has fewer than two places
    left, follows nothing: 0.0. Raises `ValueError` when the lengths differ.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"correlation needs two series of one length, got shapes {a.shape} and {b.shape}")
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if len(a) < 2 or _is_constant(a) or _is_constant(b):
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip((a @ b) / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def best_lag(a: np.ndarray, b: np.ndarray, max_lag: int) -> tuple[int, float]:
    """The shift within +-max_lag steps at which two series [T] agree best, and their `correlation` there.

    A positive lag says that b runs late: b[t + lag] resembles a[t]. Among equals the smallest shift wins.
    Raises `ValueError` unless max_lag leaves at least two places of overlap.
    """
    if not 0 <= max_lag <= len(a) - 2:
        raise ValueError(f"max_lag is {max_lag}; a series of {len(a)} values allows 0 to {len(a) - 2}")
    best = (0, correlation(a, b))
    for lag in sorted(range(-max_lag, max_lag + 1), key=abs):
        value = correlation(a[max(0, -lag) : len(a) - max(0, lag)], b[max(0, lag) : len(b) - max(0, -lag)])
        if value > best[1]:
            best = (lag, value)
    return best


@torch.no_grad()
def _mean_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """a, b: uint8 [T, values]."""
    from torchmetrics.functional.image import peak_signal_noise_ratio  # as in `ssim`

    total = 0.0
    for x, y in zip(a, b, strict=True):
        one, other = (torch.from_numpy(values.astype(np.float64)) for values in (x, y))
        total += min(float(peak_signal_noise_ratio(one, other, data_range=(0.0, 255.0))), PSNR_CEILING)
    return total / len(a)


def _laplacian_energy(clip: np.ndarray) -> float:
    inside = mouth_mask(clip.shape[1])[1:-1, 1:-1].astype(bool)
    total = 0.0
    for frame in clip:
        light = frame.astype(np.float64).mean(-1)
        around = light[:-2, 1:-1] + light[2:, 1:-1] + light[1:-1, :-2] + light[1:-1, 2:]
        total += float(np.square(around - 4 * light[1:-1, 1:-1])[inside].mean())
    return total / len(clip)


def _steepness(clip: np.ndarray, border: np.ndarray, down: np.ndarray, across: np.ndarray) -> float:
    total = 0.0
    for frame in clip:
        below, beside = np.gradient(frame.astype(np.float64).mean(-1))
        total += float(np.abs(below[border] * down + beside[border] * across).mean())
    return total / len(clip)


def _steps(frames: np.ndarray) -> Iterator[np.ndarray]:
    """One frame's step at a time: the whole clip as int16 would double what a long clip takes."""
    for before, after in itertools.pairwise(frames):
        yield after.astype(np.int16) - before.astype(np.int16)


def _mean_absolute(steps: Iterable[np.ndarray]) -> float:
    return float(np.mean([np.abs(step).mean() for step in steps])) / 255.0


def _is_constant(values: np.ndarray) -> bool:
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _check_clip(frames: np.ndarray, least: int = 2) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < least:
        need = f"uint8 [T, H, W, 3] with T >= {least}"
        raise ValueError(f"a clip must be {need}, got {frames.dtype} {list(frames.shape)}")


def _check_pair(a: np.ndarray, b: np.ndarray) -> None:
    _check_clip(a, 1)
    _check_clip(b, 1)
    if a.shape != b.shape:
        raise ValueError(f"two clips to compare must have one shape, got {list(a.shape)} and {list(b.shape)}")


def _check_crops(a: np.ndarray, b: np.ndarray) -> None:
    _check_pair(a, b)
    if a.shape[1] != a.shape[2]:
        raise ValueError(f"the mouth region is known in square crops only; these frames are {a.shape[2]}x{a.shape[1]}")
