"""Phase `mouths`, statistics in one round: what opened lips show, as a linear map of the lip shape.

A bent reference has nothing to show between lips that the photo has closed (`model.open_mouth`). Colours between the
lips of every frame, at the same places of every mouth and in units of the colour around it, are regressed on the lip
shape; a frame counts by how far the lips are apart. The mean over clients of their products is that of all clips as if
they lay in one place.

The vector, float32 [1 + R (R + 1) / 2 + R P], for R = 1 + L regressors (1 and the lip shape) and P colours:

1            `SCALE`, times how much the client counts (`statistics.counted`); the rest is divided by it
R (R + 1)/2  means of products of regressors
R P          means of products of regressors and colours

Figures that no clips have are refused (`moments_of`). What passes may be wrong colours, of up to
`open_mouth.MOST_LIGHT` times the colour around the mouth, that change with its shape by `MOST_CHANGE` at most.
"""

from collections.abc import Iterable

import numpy as np
import torch

from fedtalk_ray.errors import NothingToGive, RunError, TrainingError
from fedtalk_ray.media.face_template import region_edges
from fedtalk_ray.media.lips import aperture_of, lip_motion
from fedtalk_ray.model.autoencoder import frames_to_pixels
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.open_mouth import ACROSS, ALONG, MOST_LIGHT, colour_around, inside_of
from fedtalk_ray.shards.format import LANDMARKS, Piece
from fedtalk_ray.training.phases.phase import Fitted, Task, state_digest, until_halted
from fedtalk_ray.training.phases.statistics import (
    ROUNDING,
    check_landmarks,
    counted,
    possible_share,
    shortened,
    upper_half,
    whole,
)

COLOURS = 3 * ACROSS * ALONG

SCALE = 0.5
"""What all figures are multiplied by, so that they are about as long as other statistics."""

OPEN, WIDEST = 0.1, 5.0
"""An aperture that counts 1, in distances between the eyes, and the most that any counts: nobody's lips are half of
that distance apart."""

MOST_CHANGE = 0.2
"""By how much a colour changes at most with one deviation of one number of the shape, in units of the colour around the
mouth: of GRID's speakers together it is 0.17 at most. A liar's mouths would flicker between black and white."""

BLOCK = 25
"""Frames whose pictures are worked on at once."""

RIDGE = 0.1
"""What a deviation's effect costs, in units of how much frames count: insides of seven GRID speakers were 0.082 from
what six others' said, in black to white, and 0.086 from the others' mean."""


class Mouths:
    """Statistics of clips; sets what a denoiser's bent references show in open mouths."""

    def __init__(self, denoiser: TalkingHeadDenoiser, by_frames: bool, noisy: bool = False) -> None:
        """by_frames, noisy: as in `hearing.Hearing`. Raises `RunError` for one without lip axes."""
        if not denoiser.knows_lips():
            raise RunError("phases: mouths needs a backbone that knows lip axes, and this one has none; add units")
        self._denoiser, self._by_frames, self._noisy = denoiser, by_frames, noisy
        self._count = 1 + len(denoiser.lip_std)

    def initial(self) -> np.ndarray:
        return np.zeros(1 + self._count * (self._count + 1) // 2 + self._count * COLOURS, np.float32)

    def fit(self, task: Task) -> Fitted:
        pieces = task.people.pieces(task.client, "train", ("frames", LANDMARKS))
        vector, frames = products(until_halted(task, pieces), self._denoiser)
        if self._by_frames:
            vector = vector * counted(frames)
        return Fitted((vector - task.shared).astype(np.float32))

    def finish(self, vector: np.ndarray) -> None:
        set_mouths(self._denoiser, *moments_of(vector, self._count, self._noisy))

    def frozen(self) -> bytes:
        return state_digest(self._denoiser.state_dict())


def can_open(denoiser: object) -> bool:
    """Whether the phase can teach a backbone anything."""
    if not isinstance(denoiser, TalkingHeadDenoiser):
        return False
    return denoiser.takes_bent() and denoiser.open_mouth is not None


def check_can_open(denoiser: object) -> None:
    """Raises `RunError` for a backbone that the phase can teach nothing, before clients have worked for it."""
    if not can_open(denoiser):
        raise RunError(
            "phases: mouths fills the mouths of references that are bent to lips, and this "
            f"{type(denoiser).__name__} has none: leave it out, or take shared: backbone with --autoencoder lower-face"
        )


@torch.no_grad()
def products(pieces: Iterable[Piece], denoiser: TalkingHeadDenoiser) -> tuple[np.ndarray, int]:
    """One client's vector, float64, from the frames and the landmarks of its pieces, and how many frames they have.

    Raises `ShardError` for pieces without landmarks, and `NothingToGive` for lips that cannot be read or never part.
    """
    count, frames = 1 + len(denoiser.lip_std), 0
    squares, together = np.zeros((count, count)), np.zeros((count, COLOURS))
    for piece in pieces:
        shapes, colours, weights = insides(piece, denoiser)
        regressors = np.concatenate([np.ones((len(shapes), 1)), shapes.double().numpy()], axis=1)
        weighted = weights[:, None] * regressors
        frames += len(regressors)
        squares += weighted.T @ regressors
        together += weighted.T @ colours.flatten(1).double().numpy()
    if not squares.any():
        raise NothingToGive("its lips never part, so they say nothing about what is behind them")
    figures = np.concatenate([upper_half(squares), together.flatten()]) / frames
    if not np.isfinite(figures).all():
        raise NothingToGive("its lips cannot be read: they hold values that are no numbers")
    return SCALE * np.concatenate([[1.0], figures]), frames


def insides(piece: Piece, denoiser: TalkingHeadDenoiser) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Of each frame of a piece its lip shape float32 [T, L], what its mouth shows (`inside_of`), and how much that
    counts, float64 [T].

    What a mouth shows is in units of the colour around it in the frame half a piece away, as a photo's is another
    frame. Raises `ShardError` for a piece without landmarks.
    """
    check_landmarks(piece, len(piece.frames))
    inside, around = _colours(piece)
    shapes = denoiser.lip_shape(torch.from_numpy(lip_motion(piece.landmarks)).to(denoiser.device)).cpu()
    around = around.roll(len(around) // 2, 0)[:, :, None, None]
    weights = np.minimum(aperture_of(piece.landmarks).astype(np.float64) / OPEN, WIDEST)
    return shapes, (inside / around).clamp(max=MOST_LIGHT), weights


def _colours(piece: Piece) -> tuple[torch.Tensor, torch.Tensor]:
    """What mouths show (`inside_of`), and what is around them [T, 3]."""
    left, top, right, bottom = region_edges(piece.frames.shape[1], "lower face")
    insides, arounds = [], []
    for begin in range(0, len(piece.frames), BLOCK):
        frames, points = (each[begin : begin + BLOCK] for each in (piece.frames, piece.landmarks))
        insides.append(inside_of(frames, points))
        lower = frames_to_pixels(frames[:, top:bottom, left:right])
        arounds += [colour_around(*face) for face in zip(lower, points, strict=True)]
    return torch.cat(insides), torch.stack(arounds)


def moments_of(vector: np.ndarray, count: int, noisy: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Mean products of regressors [R, R] and of them with colours [R, P], float64, from the mean of the clients'
    `products`.

    noisy: whether it may be what no clips give. Raises `TrainingError` where there is none, or one that no clips have:
    shares below what honest clients send, lips further apart than lips are, colours that are none, a mean square below
    nothing, or colours that depend on the shape more than colours can. (Of w >= 0, x and 0 <= c <= M the projection of
    c on x is no longer than c: E[w c x]' E[w x x']^-1 E[w c x] <= E[w c^2] <= M E[w c].)
    """
    share = float(vector[0]) / SCALE
    if share <= 0:
        raise TrainingError("the clients' products cancel out: nobody answered, or there is more noise than answers")
    figures = vector[1:].astype(np.float64) / (share * SCALE)
    half = count * (count + 1) // 2
    squares, together = whole(figures[:half], count), figures[half:].reshape(count, COLOURS)
    if not noisy:
        # A liar's largest figure must not say how exactly the others are looked at.
        slack = ROUNDING * max(1.0, float(np.abs(squares).max()))
        least, most = together[0].min(), together[0].max() - MOST_LIGHT * squares[0, 0]
        possible = possible_share(share) and slack < squares[0, 0] <= WIDEST + slack and least >= -slack
        possible = possible and most <= slack and np.linalg.eigvalsh(squares)[0] >= -slack
        if possible:
            explained = (together * np.linalg.solve(squares + 2 * slack * np.eye(count), together)).sum(0)
            possible = bool((explained <= MOST_LIGHT * (together[0] + slack)).all())
        if not possible:
            raise TrainingError(
                "the mean of what the clients' mouths show is one that no clips have: a client sent other figures than "
                "its own; begin another run without it"
            )
    return squares, together


@torch.no_grad()
def set_mouths(denoiser: TalkingHeadDenoiser, squares: np.ndarray, together: np.ndarray) -> None:
    """Sets the linear map: argmin E w |colour - C (1, shape)|^2 + `RIDGE` E w |C shape|^2."""
    mouth = denoiser.open_mouth
    assert mouth is not None  # `check_can_open`
    cost = RIDGE * squares[0, 0] * np.diag([0.0, *np.ones(len(squares) - 1)])
    along, directions = np.linalg.eigh(squares + cost)
    if along[-1] <= 0:
        raise TrainingError("no client's lips ever part, and nothing can be learned of what is behind them")
    # Noise may make a mean square negative; what it says of that direction is nothing.
    told = along > ROUNDING * along[-1]
    weights = directions[:, told] / along[told] @ (directions[:, told].T @ together)
    weights[1:] = weights[1:].clip(-MOST_CHANGE, MOST_CHANGE)
    mouth.colours.copy_(torch.from_numpy(shortened(weights)).view_as(mouth.colours))
