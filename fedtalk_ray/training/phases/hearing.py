"""Phase `hearing`, statistics in one round: which lips each sound means, by ridge regression in closed form.

A pretrained speech encoder has heard so much that a linear map of its features says of strangers' lips more than a
network of our own that a few dozen clips teach: apertures of eight GRID speakers by whom settings are chosen correlate
with the truth's by 0.86 instead of 0.82. Nor does such a map need steps: it is a function of means of products, and
their mean over clients is that of all clips as if they lay in one place. Where all answer, with no more frames than
`statistics.FULL` and no fewer than a tenth of that, a federation hears what the centre would with the same units.

The vector, float32 [1 + N + N (N + 1) / 2], for F features of a frame and L numbers of its lip shape, N = F + L:

1             SHARE, times how much the client counts; the rest is divided by it
N             means of features and shapes
N (N + 1)/2   means of their products

Figures that no clips have are refused (`moments_of`). What passes may be heard wrong, within `speech_code.MOST_HEARD`.

Features are turned by a cosine transform, which changes nothing of a ridge regression: in an encoder a few of them are
large, and a vector of which a few values are large is cut where secure sums write it down (`update_codec`).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from scipy.fft import dct, idct

from fedtalk_ray.errors import NothingToGive, RunError, TrainingError
from fedtalk_ray.media.lips import lip_motion
from fedtalk_ray.media.speech import LOG_MEL
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.speech_code import LipRegression
from fedtalk_ray.shards.format import LANDMARKS, Piece
from fedtalk_ray.training.phases.phase import Fitted, Task, state_digest, until_halted
from fedtalk_ray.training.phases.speech import check_sound
from fedtalk_ray.training.phases.statistics import (
    ROUNDING,
    check_landmarks,
    counted,
    possible_share,
    shortened,
    upper_half,
    whole,
)

MOST_VARIANCE, MOST_MEAN = 2.0, 1.0
"""Of lip shapes of all clips together, in the deviations that `units` found. They would be 1 and 0 if `units` counted
clients as this phase does; of GRID's seventeen clients they are 1.06 and 0.01."""

SHARE, SHAPES, USUAL = 0.25, 0.35, 1200
"""What the 1 and lip shapes are multiplied by, so that no figure is much larger than the others; less where features
and shapes are more than `USUAL`, as a longer vector is written down in finer steps (`UpdateCodec.zoom`)."""


class Hearing:
    """Statistics of clips; sets the speech encoder of a denoiser that hears linearly."""

    def __init__(self, denoiser: TalkingHeadDenoiser, ridge: float, by_frames: bool, noisy: bool = False) -> None:
        """ridge: `HearingConfig.ridge`. by_frames: whether vectors say by how many frames a client counts, where
        weights do not. noisy: as in `units.Units`.

        Raises `RunError` for one without lip axes.
        """
        if not denoiser.knows_lips():
            raise RunError("phases: hearing needs a backbone that knows lip axes, and this one has none; add units")
        self._denoiser, self._ridge, self._by_frames, self._noisy = denoiser, ridge, by_frames, noisy
        self._count = encoder_of(denoiser).linear1.in_features + len(denoiser.lip_std)

    def initial(self) -> np.ndarray:
        return np.zeros(1 + self._count + self._count * (self._count + 1) // 2, np.float32)

    def fit(self, task: Task) -> Fitted:
        pieces = task.people.pieces(task.client, "train", ("speech", LANDMARKS))
        vector, frames = products(until_halted(task, pieces), self._denoiser)
        if self._by_frames:
            vector = vector * counted(frames)
        return Fitted((vector - task.shared).astype(np.float32))

    def finish(self, vector: np.ndarray) -> None:
        mean, covariance = moments_of(vector, self._count, len(self._denoiser.lip_std), self._noisy)
        set_hearing(self._denoiser, mean, covariance, self._ridge)

    def frozen(self) -> bytes:
        return state_digest(self._denoiser.state_dict())


def check_can_hear(denoiser: Any) -> None:
    """Raises `RunError` for a backbone that the phase can teach nothing, before clients have worked for it."""
    speech = denoiser.config.speech
    if speech == LOG_MEL:
        raise RunError(
            f"phases: hearing is for sound features of a pretrained encoder, and these are {speech}: take speech, or "
            "shards that were prepared with another --speech"
        )
    if not denoiser.takes_bent() or not isinstance(denoiser.speech_encoder, LipRegression):
        raise RunError(
            "phases: hearing teaches lip shapes alone, to a network of ours that bends its reference to them, and this "
            f"{type(denoiser).__name__} does not: take speech, or shared: backbone with --autoencoder lower-face"
        )


def encoder_of(denoiser: TalkingHeadDenoiser) -> LipRegression:
    encoder = denoiser.speech_encoder
    assert isinstance(encoder, LipRegression)  # `check_can_hear`
    return encoder


@torch.no_grad()
def products(pieces: Iterable[Piece], denoiser: TalkingHeadDenoiser) -> tuple[np.ndarray, int]:
    """One client's vector, float64, from the sound and the landmarks of its pieces, and how many frames they have.

    Raises `ShardError` for pieces without landmarks, and `NothingToGive` for silent ones and for what is no number.
    """
    sums: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0
    frames, silent, encoder = 0, True, encoder_of(denoiser)
    share_unit, shapes_unit = units_for(encoder.linear1.in_features + len(denoiser.lip_std))
    for piece in pieces:
        check_landmarks(piece, len(piece.speech))
        sound = torch.from_numpy(np.asarray(piece.speech, np.float32)).to(denoiser.device)
        try:
            check_sound(sound)
        except NothingToGive:
            continue
        silent = False
        heard = encoder.features(sound).double().cpu().numpy()
        lips = torch.from_numpy(lip_motion(piece.landmarks)).to(denoiser.device)
        shapes = shapes_unit * denoiser.lip_shape(lips).double().cpu().numpy()
        both = np.concatenate([dct(heard, axis=-1, norm="ortho").reshape(len(heard), -1), shapes], axis=1)
        frames += len(both)
        sums, squares = sums + both.sum(0), squares + both.T @ both
    if silent:
        raise NothingToGive("its clips are silent, and nothing can be learned from what is not said")
    vector = np.concatenate([[share_unit], np.asarray(sums) / frames, upper_half(np.asarray(squares)) / frames])
    if not np.isfinite(vector).all():
        raise NothingToGive("its sound or lips cannot be read: they hold values that are no numbers")
    return vector, frames


def moments_of(vector: np.ndarray, count: int, lips: int, noisy: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Mean [N] and covariance [N, N], float64, of features and shapes, from the mean of the clients' `products`.

    lips: L, the last so many. noisy: whether it may be what no clips give. Raises `TrainingError` where there is none,
    or one that no clips have: shares below what honest clients send, lips that open further than lips do, or a
    covariance with a negative direction.
    """
    share_unit, shapes_unit = units_for(count)
    share = float(vector[0]) / share_unit
    if share <= 0:
        raise TrainingError("the clients' products cancel out: nobody answered, or there is more noise than answers")
    figures = vector[1:].astype(np.float64) / share
    mean = figures[:count]
    covariance = whole(figures[count:], count) - np.outer(mean, mean)
    if not noisy:
        far, wide = np.abs(mean[-lips:]).max() / shapes_unit, np.diag(covariance)[-lips:].max() / shapes_unit**2
        possible = possible_share(share) and far <= MOST_MEAN and wide <= MOST_VARIANCE
        if not possible or np.linalg.eigvalsh(covariance)[0] < -ROUNDING * max(1.0, np.abs(figures).max()):
            raise TrainingError(
                "the mean of the clients' products is one that no clips have: a client sent other figures than its "
                "own, or lips move otherwise than those of the phase units did; begin another run without it, with "
                "units and the same clients in both (cohort.statistics)"
            )
    return mean, covariance


def units_for(count: int) -> tuple[float, float]:
    """`SHARE` and `SHAPES` for so many features and shapes together."""
    return SHARE * min(1.0, USUAL / count), SHAPES * min(1.0, USUAL / count)


@torch.no_grad()
def set_hearing(denoiser: TalkingHeadDenoiser, mean: np.ndarray, covariance: np.ndarray, ridge: float) -> None:
    """Sets the linear map of a denoiser's speech encoder: argmin E|shape - W f - b|^2 + lambda |W|^2."""
    layer = encoder_of(denoiser).linear1
    features, lips = layer.in_features, len(denoiser.lip_std)
    _, shapes_unit = units_for(features + lips)
    heard, together = covariance[:features, :features], covariance[:features, features:] / shapes_unit
    cost = ridge * np.trace(heard) / features
    if cost <= 0:
        raise TrainingError("of what clients hear nothing ever changes, and nothing can be learned from that")
    along, directions = np.linalg.eigh(heard)
    # Noise may make a variance negative.
    weights = directions @ ((directions.T @ together) / (along.clip(0) + cost)[:, None])
    bins = int(denoiser.config.mel_bins)
    turned_back = idct(weights.T.reshape(lips, -1, bins), axis=-1, norm="ortho").reshape(lips, -1)
    layer.weight.zero_()
    layer.bias.zero_()
    layer.weight[:lips].copy_(torch.from_numpy(shortened(turned_back)))
    layer.bias[:lips].copy_(torch.from_numpy(shortened(mean[features:] / shapes_unit - mean[:features] @ weights)))
