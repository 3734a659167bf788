"""The figures of one clip: what a row of the table shows of it, beside its truth."""

from dataclasses import dataclass

import numpy as np
import torch

from fedtalk_ray.evaluation import metrics
from fedtalk_ray.evaluation.judge import IdentityJudge, embed_clip, similarity
from fedtalk_ray.evaluation.perceptual import PerceptualDistance
from fedtalk_ray.media.framing import ALIGNED, Framing, aligned_crops, to_aligned
from fedtalk_ray.media.lips import lip_aperture
from fedtalk_ray.media.speech import spoken
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.shards.format import Piece

Figures = dict[str, float | None]
"""Metric by name; None where it cannot be known, as the likeness with another clip of somebody who has one."""

MAX_OFFSET = 5
"""Frames (0.2 s) to either side in which the lips' offset is sought."""

NEAR_OFFSET = 2
"""Frames (80 ms) that pass for in time. By chance alone 5 of 11 offsets do."""


@dataclass(frozen=True)
class Truth:
    """What is known of the real clip, measured once for all rows.

    lips: float32 [T]. speech: the frames in which somebody speaks. faces, other_faces: float32 [K, 512], the judge's
    embeddings of this clip and of another real clip of the person; None without a judge, or without another clip.
    """

    frames: np.ndarray
    lips: np.ndarray
    speech: slice
    faces: np.ndarray | None
    other_faces: np.ndarray | None


class Alignment:
    """A piece's crops as all figures take them: aligned, whatever framing the model wants."""

    def __init__(self, piece: Piece, framing: Framing) -> None:
        self._maps = None if framing is ALIGNED else to_aligned(piece.landmarks, piece.places)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 [T, S, S, 3] that lie where the piece's own do, the first T of them."""
        return frames if self._maps is None else aligned_crops(frames, self._maps)

    def of_first(self, frames: np.ndarray) -> np.ndarray:
        """Frames that lie where the piece's first does: all that is made of that one."""
        return frames if self._maps is None else aligned_crops(frames, self._maps[:1].repeat(len(frames), axis=0))


def measure_truth(piece: Piece, judge: IdentityJudge | None, other: np.ndarray | None) -> Truth:
    """other: frames uint8 [T', S, S, 3] of another real clip of the person, or None."""
    return Truth(
        frames=piece.frames,
        lips=lip_aperture(piece.frames),
        speech=spoken(piece.waveform.astype(np.float32) / 32767, len(piece.frames)),
        faces=None if judge is None else embed_clip(judge, piece.frames),
        other_faces=None if judge is None or other is None else embed_clip(judge, other),
    )


def measure(
    frames: np.ndarray,
    truth: Truth,
    judge: IdentityJudge | None = None,
    perceptual: PerceptualDistance | None = None,
) -> Figures:
    """All figures of frames uint8 [T, S, S, 3] against the truth of the same shape.

    Lips are compared over the whole clip and where somebody speaks, their offset where somebody speaks. `identity` is
    likeness with the same moments of this clip, `identity_other_clip` with another real clip of the person: the one to
    compare with real/real.
    """
    lips = lip_aperture(frames)
    figures: Figures = {
        "psnr": metrics.psnr(frames, truth.frames),
        "mouth_psnr": metrics.mouth_psnr(frames, truth.frames),
        "ssim": metrics.ssim(frames, truth.frames),
        "mouth_sharpness": metrics.sharpness_ratio(frames, truth.frames),
        "seam": metrics.seam_ratio(frames, truth.frames),
    }
    if perceptual is not None:
        figures[perceptual.name] = perceptual(frames, truth.frames)
    offset = lip_offset(lips[truth.speech], truth.lips[truth.speech])
    figures |= {
        "jitter_ratio": metrics.jitter_ratio(frames, truth.frames),
        "lip_correlation": metrics.correlation(lips, truth.lips),
        "lip_correlation_spoken": metrics.correlation(lips[truth.speech], truth.lips[truth.speech]),
        "lip_offset_within_2": float(offset is not None and abs(offset) <= NEAR_OFFSET),
    }
    if judge is not None and truth.faces is not None:
        faces = embed_clip(judge, frames)
        figures["identity"] = float(np.mean([similarity(*pair) for pair in zip(faces, truth.faces, strict=True)]))
        figures["identity_other_clip"] = likeness(faces, truth.other_faces)
    return figures


def lip_agreement(model: TalkingHeadPipeline, piece: Piece) -> float:
    """Correlation of generated and true lips where somebody speaks, of a clip spoken from its first frame."""
    audio = piece.waveform.astype(np.float32) / 32767
    made = model(piece.frames[0], audio, generator=torch.Generator().manual_seed(0)).frames[: len(piece.frames)]
    speech, aligned = spoken(audio, len(piece.frames)), Alignment(piece, model.framing)
    lips, true_lips = lip_aperture(aligned.of_first(made)), lip_aperture(aligned(piece.frames))
    return metrics.correlation(lips[speech], true_lips[speech])


def real_figures(truth: Truth) -> Figures:
    """What two real clips of the person have in common: the same reference frames as `measure`'s."""
    if truth.faces is None:
        return {}
    return {"identity_other_clip": likeness(truth.faces, truth.other_faces)}


def likeness(faces: np.ndarray, others: np.ndarray | None) -> float | None:
    """The mean similarity of every face [K, 512] with every other one [K', 512]; None without others."""
    if others is None:
        return None
    return float(np.mean([similarity(face, other) for face in faces for other in others]))


def lip_offset(lips: np.ndarray, true_lips: np.ndarray) -> int | None:
    """By how many frames the lips run late (positive) or early, within `MAX_OFFSET`: where they agree best.

    lips, true_lips: [T]. None where they agree nowhere (no positive correlation, as of a still), or are too short.
    """
    if len(lips) <= 2 * MAX_OFFSET:
        return None
    lag, agreement = metrics.best_lag(true_lips, lips, MAX_OFFSET)
    return lag if agreement > 0 else None
