"""What a network is told of lips while it lets a face speak: their shapes, the reference's own, and its bent face.

Lip shapes count from where a mouth habitually sits, of which a photo says nothing. What is known of its own shape is
how far its lips are apart, and that sounds mostly begin with lips as photos have them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from fedtalk_ray.model.bending import Bends, bend
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser

KEPT = 512
"""Frames that are remembered. Up to ten denoising steps, whoever asks for one again does so sooner than that."""

BEGINNING = 3
"""Frames of which the mean is what a sound begins with, where a linear map hears; where a speech encoder does, the
first counts alone. Few windows of training begin where their clip does, so one frame is uncertain; but what is heard
later is no longer what a photo shows. By three / two / the first (GRID's recipe as it ships, and drawn people):

GRID, a linear map: the eight of below, mouth   29.81 29.77 29.73 dB
    ST-LPIPS (a still's .0300)                  .0293 .0292 .0291
    Fréchet, mouths                              20.5 -      20.6
    lip correlation, spoken                      .840 -      .839
an encoder, of log-mel: the same eight, mouth   29.36 -     29.31 dB
    ST-LPIPS                                    .0296 -     .0295
    Fréchet, mouths                              20.4 -      20.6
    lip correlation, spoken                      .682 -      .691
48 drawn people, an encoder: over a still        0.98 -      1.07 dB"""

TRUSTED, BEYOND = 0.25, 1.0
"""How much it counts that a photo's lips are further apart than a sound begins with, up to `BEYOND` deviations; what is
more than that counts in full. What counts bends a mouth in silence too, where it would else be the photo's. Eight GRID
speakers by whom settings are chosen, by the network of an earlier recipe, with none of it / a quarter / half:

                               mean of 5 frames       of 3
ST-LPIPS, photo their first    .0290 .0289 .0290      .0288 .0288 not tried
    open, mid-sentence         .0308 .0311 .0315      .0308 .0310
mouth, dB, photo their first   29.45 29.56 29.59      29.48 29.55
    open, mid-sentence         26.39 26.66 26.89      26.34 26.61"""


class ByFrame(Protocol):
    """Something of each frame, asked for by numbers int64 [...]: a tensor [..., *shape]."""

    def __getitem__(self, places: torch.Tensor) -> torch.Tensor: ...


class Heard(Protocol):
    """What each frame hears: a tensor float32 [T, hops, bins], or what is still to be heard of it."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: torch.Tensor) -> torch.Tensor: ...


class Remembered:
    """What `compute` says of frames by their numbers int64 [N], rows [N, *shape]; windows overlap, and each is
    worked out once."""

    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._compute = compute
        self._rows: dict[int, torch.Tensor] = {}

    def __getitem__(self, places: torch.Tensor) -> torch.Tensor:
        numbers = places.flatten().tolist()
        fresh = sorted(set(numbers) - self._rows.keys())
        if fresh:
            self._rows |= zip(fresh, self._compute(torch.tensor(fresh)), strict=True)
        found = torch.stack([self._rows[number] for number in numbers]).unflatten(0, places.shape)
        for number in [number for number in self._rows if number < max(numbers) - KEPT]:
            del self._rows[number]
        return found


class BentReference:
    """A reference with the lips of each frame."""

    def __init__(
        self, base: TalkingHeadDenoiser, reference: torch.Tensor, points: np.ndarray, own: torch.Tensor, shapes: ByFrame
    ) -> None:
        """reference: latents [C, h, w], of a face with 68 points [68, 2] in fractions of its crop. own: its lip shape
        [L]; shapes: those of the frames."""
        reference, points = reference.to(base.device), points.astype(np.float64)
        bend_latents = base.latent_bend
        assert bend_latents is not None
        self._flows = Remembered(lambda places: base.flows(points, shapes[places] - own))

        def bends(places: torch.Tensor) -> Bends:
            # What is laid is as large as a picture: it is worked out anew, and not remembered.
            return Bends(self._flows[places], base.laid(reference, points, own, shapes[places]))

        self._bends = bends
        self._latents = Remembered(lambda places: bend_latents(reference[None], bends(places)[None])[0])

    def __getitem__(self, places: torch.Tensor) -> torch.Tensor:
        """Latents [..., C, h, w]."""
        return self._latents[places]

    def pictures(self, lower: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The reference's lower face [1, 3, w, w] in some frames: [N, 3, w, w]."""
        return bend(lower, self._bends(places))


@dataclass(frozen=True)
class Told:
    """lips: shapes [L] of the frames in place of those that are heard. reference_lips: the reference's own [L], as far
    as it is known or supposed, NaN where a number is neither. bent: the reference with each frame's lips. None where
    nothing is told."""

    lips: ByFrame | None = None
    reference_lips: torch.Tensor | None = None
    bent: ByFrame | None = None


NOTHING_TOLD = Told()


def told_of(
    base: Any,
    reference: torch.Tensor,
    points: np.ndarray | None,
    speech: Heard,
    known: np.ndarray | None,
    lips: np.ndarray | None = None,
    live: bool = False,
) -> Told:
    """What `base` can be told of a face that speaks.

    reference: its latents [C, h, w]. points: its 68 points [68, 2], in fractions of the crop. known: of its own lips
    (`media.lips.lips_of`), float32 [LIP_MOTION], NaN where a number is not. lips: `media.lips.lip_motion` of each
    frame, float32 [T, LIP_MOTION], where what the sound says is not to count. live: the sound is still coming, and how
    loud its beginning was is not known yet.
    """
    if not base.knows_lips():
        return NOTHING_TOLD
    shapes, own = (None if each is None else shape_of(base, each) for each in (lips, known))
    if not base.takes_bent() or points is None or own is None:
        return Told(shapes, own if base.takes_reference_lips() else None)
    if shapes is None:
        heard = Remembered(lambda places: base.heard_shapes(speech[places]))
        if live:
            own = filled(base, own)
        elif bool(own.isnan().any()):
            beginning = BEGINNING if base.hears_linearly() else 1
            own = own_of_photo(base, own[0], heard[torch.arange(min(beginning, len(speech)))].mean(0))
        return Told(None, own, BentReference(base, reference, points, own, heard))
    own = filled(base, own)
    return Told(shapes, own, BentReference(base, reference, points, own, shapes))


def shape_of(base: TalkingHeadDenoiser, motion: np.ndarray) -> torch.Tensor:
    return base.lip_shape(torch.from_numpy(motion).to(base.device, torch.float32))


def filled(base: TalkingHeadDenoiser, own: torch.Tensor) -> torch.Tensor:
    """A shape [..., L] of which all that is not known (NaN) is what goes with its aperture on average."""
    return torch.where(own.isnan(), own[..., :1] * base.with_aperture(), own)


def own_of_photo(base: TalkingHeadDenoiser, aperture: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """The shape [L] of lips of which only the aperture is known, in deviations: the one that is heard at first [L],
    moved to that aperture as far as it counts."""
    further = aperture - first[0]
    return first + base.with_aperture() * (further - (1 - TRUSTED) * further.clamp(-BEYOND, BEYOND))
