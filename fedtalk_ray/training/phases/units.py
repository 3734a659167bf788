"""Phase `units`, statistics in one round: the units of latents and residuals, and along which axes lips move.

Every client answers with the means of a few products over its own frames, and the mean over clients gives moments of
all frames as if they lay in one place: principal components need no more than a covariance.

The vector, float32 [1 + 3 C + 2 + M (M + 1) / 2], for C latent channels and M displacements of the mouth's points:

1            the share of clients that answered; the rest is divided by it, so that noise on a fixed denominator or a
             client that stayed away changes no unit
3 C          of each channel, the means of latents, of their squares, and of the squares of residuals, in the units that
             the denoiser has before
2            the means of the lips' aperture and of its square
M (M + 1)/2  the means of products of displacements, `media.lips.lip_motion`
"""

from collections.abc import Iterable

import numpy as np
import torch

from fedtalk_ray.errors import NothingToGive, TrainingError
from fedtalk_ray.media.lips import LIP_MOTION, lip_motion
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.recipe import SMALLEST_SHARE
from fedtalk_ray.shards.format import LANDMARKS, Piece
from fedtalk_ray.training.phases.phase import Fitted, Task, state_digest, until_halted
from fedtalk_ray.training.phases.statistics import ROUNDING, check_landmarks, upper_half, whole

EVERY = 5
"""Latents are counted in one frame of so many: neighbours say the same."""

_PRODUCTS = (LIP_MOTION - 1) * LIP_MOTION // 2
_APERTURE, _MOVED = 10.0, 100.0
"""What apertures (0 to 0.3) and displacements (about 0.01) are multiplied by, so that all figures are about 1: the
vector is clipped and noise is added to all of it alike."""


LEAST_OF_OLD_UNITS = 0.2
"""At least so much of the deviations that a model had are its new ones: one client's figures could bring a channel's to
nothing. On people of another kind means came to 0.33 at least (GRID after drawn people), single clients to 0.23."""

LEAST_APERTURE, LEAST_MOVED = 0.02, 0.002
"""At least so much are the deviations of the lips' aperture, in distances between the eyes, and along each axis, in the
crop's side: one client's figures could bring them to a ten-thousandth, and lips be told as thousands of deviations.
Of GRID, drawn people and puppets means over clients are 0.056 and 0.0048 at least, single clients' 0.025 and 0.0021."""


class Units:
    """Statistics of clips; sets a denoiser's units and lip axes."""

    def __init__(self, denoiser: TalkingHeadDenoiser, noisy: bool = False) -> None:
        """noisy: whether what is summed has noise in it, or is a median over groups (`strategy.groups`), and so may be
        what no clips give."""
        self._denoiser, self._noisy = denoiser, noisy
        self._channels = int(denoiser.config.latent_channels)

    def initial(self) -> np.ndarray:
        return np.zeros(1 + 3 * self._channels + 2 + _PRODUCTS, np.float32)

    def fit(self, task: Task) -> Fitted:
        pieces = task.people.pieces(task.client, "train", ("latents", LANDMARKS))
        return Fitted((moments(until_halted(task, pieces), self._denoiser) - task.shared).astype(np.float32))

    def finish(self, vector: np.ndarray) -> None:
        if not self._noisy:
            check_possible(vector, self._channels)
        set_units(self._denoiser, vector)

    def frozen(self) -> bytes:
        return state_digest(self._denoiser.state_dict())


def moments(pieces: Iterable[Piece], denoiser: TalkingHeadDenoiser | None = None) -> np.ndarray:
    """One client's vector, float64, from the latents and landmarks of its pieces.

    denoiser: whose present units latents are counted in, so that all figures are about 1; None for one without any.
    Residuals are taken between frames half a piece apart, which is what a random reference is on average. Raises
    `ShardError` for pieces without landmarks, and `NothingToGive` for lips that cannot be read or never move.
    """
    cells = frames = 0
    mean, std, residual_std = latent_units(denoiser) if denoiser else (np.zeros(1), np.ones(1), np.ones(1))
    seen: np.ndarray | float = 0.0
    lips: np.ndarray | float = 0.0
    for piece in pieces:
        check_landmarks(piece, len(piece.latents))
        latents = piece.latents[::EVERY].astype(np.float64)
        residuals = (latents - np.roll(latents, len(latents) // 2, axis=0)) / residual_std
        latents = (latents - mean) / std
        axes = (0, 2, 3)
        cells += latents[:, 0].size
        seen = seen + np.concatenate([latents.sum(axes), (latents**2).sum(axes), (residuals**2).sum(axes)])
        motion = lip_motion(piece.landmarks).astype(np.float64)
        aperture, moved = _APERTURE * motion[:, 0], _MOVED * motion[:, 1:]
        frames += len(motion)
        lips = lips + np.concatenate([[aperture.sum(), (aperture**2).sum()], upper_half(moved.T @ moved)])
    vector = np.concatenate([[1.0], np.asarray(seen) / max(cells, 1), np.asarray(lips) / max(frames, 1)])
    if not np.isfinite(vector).all():
        raise NothingToGive("its lips or latents cannot be read: they hold values that are no numbers")
    if not vector[-_PRODUCTS:].any():
        raise NothingToGive("its lips never move, so they say nothing about how lips do")
    return vector


def latent_units(denoiser: TalkingHeadDenoiser) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation of latents and that of residuals, float64 [C, 1, 1] each: 0, 1 and 1 at first."""
    parts = (denoiser.reference_mean, denoiser.reference_std, denoiser.residual_std)
    mean, std, residual_std = (part.double().cpu().numpy()[:, None, None] for part in parts)
    return mean, std, residual_std


def set_units(denoiser: TalkingHeadDenoiser, vector: np.ndarray) -> None:
    """Sets a denoiser's units and lip axes from the mean of the clients' `moments` for it.

    The axes are the largest principal components of displacements, signed by `_signed`. Deviations
    of latents, of a model that has units, become no less than `LEAST_OF_OLD_UNITS` of what they were, those of lips no
    less than `LEAST_APERTURE` and `LEAST_MOVED`.
    """
    if vector[0] <= 0:
        raise TrainingError("the clients' statistics cancel out: nobody answered, or there is more noise than answers")
    channels = int(denoiser.config.latent_channels)
    (mean, square, residual), (aperture, aperture_square), products = _parts(vector, channels)
    old_mean, old_std, old_residual = (each[:, 0, 0] for each in latent_units(denoiser))
    # What two frames differ by is four variances at most, as a mean square; of groups the medians of mean and of square
    # may be of different ones.
    variance = np.maximum(square - mean**2, residual * (old_residual / old_std) ** 2 / 4)
    known = bool((old_std != 1).any() or (old_residual != 1).any())
    least = LEAST_OF_OLD_UNITS**2 if known else 1e-6
    moved, vectors = np.linalg.eigh(products)
    count = len(denoiser.lip_axes)
    axes = _signed(vectors[:, ::-1][:, :count].T)
    spread = [max(np.sqrt(max(aperture_square - aperture**2, 0)) / _APERTURE, LEAST_APERTURE)]
    spread += [max(np.sqrt(max(along, 0)) / _MOVED, LEAST_MOVED) for along in moved[::-1][:count]]
    for buffer, values in (
        (denoiser.reference_mean, old_mean + old_std * mean),
        (denoiser.reference_std, old_std * np.sqrt(np.maximum(variance, least))),
        (denoiser.residual_std, old_residual * np.sqrt(np.maximum(residual, least))),
        (denoiser.lip_axes, axes),
        (denoiser.lip_mean, np.array([aperture / _APERTURE, *np.zeros(count)])),
        (denoiser.lip_std, np.array(spread)),
    ):
        buffer.copy_(torch.from_numpy(values.astype(np.float32)))
    if denoiser.open_mouth is not None:
        # How colours change with the shape was said in other axes and deviations; the mean inside stays.
        denoiser.open_mouth.colours[1:] = 0


def _signed(axes: np.ndarray) -> np.ndarray:
    """Axes [N, M], each with the first of its largest numbers positive.

    The two corners of a mouth move by the same number left and right: which is larger is a matter of rounding, and each
    machine would have another sign.
    """
    sizes = np.abs(axes)
    first = (sizes >= sizes.max(1, keepdims=True) * (1 - 1e-6)).argmax(1)
    return axes * np.sign(axes[np.arange(len(axes)), first])[:, None]


def check_possible(vector: np.ndarray, channels: int) -> None:
    """Raises `TrainingError` for what no mean of `moments` is, however the clips are: somebody sent other figures."""
    possible = SMALLEST_SHARE <= vector[0] <= 1 + ROUNDING
    if possible:
        (mean, square, residual), (aperture, aperture_square), products = _parts(vector, channels)
        variances = [*(square - mean**2), *residual, aperture_square - aperture**2, *np.linalg.eigvalsh(products)]
        possible = min(variances) >= -ROUNDING * max(1.0, np.abs(vector).max())
    if not possible:
        raise TrainingError(
            "the mean of the clients' statistics is one that no clips have: a client sent other figures than its own; "
            "begin another run without it"
        )


def _parts(vector: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moments of latents and residuals [3, C], of the aperture [2], and the matrix of products [M, M], float64."""
    figures = vector[1:].astype(np.float64) / vector[0]
    products = whole(figures[3 * channels + 2 :], LIP_MOTION - 1)
    return figures[: 3 * channels].reshape(3, channels), figures[3 * channels : 3 * channels + 2], products
