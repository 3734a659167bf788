"""Where a face lies in an aligned crop: one geometry for every corpus.

Every frame is brought by a similarity transform (rotation, one scale, shift) to the same place, so that what
still moves between two frames is the mouth and the eyelids. All figures are fractions of the crop's side, with
(0, 0) the outer corner of the top left pixel and (1, 1) that of the bottom right one; "left" is left in the picture.
"""

import numpy as np

LEFT_EYE = (0.32, 0.28)
RIGHT_EYE = (0.68, 0.28)
"""Centres of the two eyes. Their distance, 0.36 of the side, leaves the chin inside the crop."""

MOUTH_CENTRE = (0.50, 0.71)
"""Where the middle of a typical mouth comes to lie: 1.2 eye distances below the eyes (GRID). Not aligned to."""

MOUTH_BOX = (0.26, 0.54, 0.74, 0.92)
"""(left, top, right, bottom) of the region that losses weight and metrics report as the mouth region."""


REGIONS = {"face": (0.0, 0.0, 1.0, 1.0), "lower face": (1 / 6, 1 / 3, 5 / 6, 1.0)}
"""What part of the crop latents are of: (left, top, right, bottom), squares. The lower face, from below the eyes to the
chin, is what speech moves."""


def region_edges(side: int, region: str) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a region in pixels of a crop of side x side of them."""
    left, top, right, bottom = (round(edge * side) for edge in REGIONS[region])
    return left, top, right, bottom


def mouth_edges(side: int, region: str = "face") -> tuple[int, int, int, int]:
    """`MOUTH_BOX` in pixels or latent cells of a region of side x side of them."""
    first, top, last, bottom = REGIONS[region]
    across, down = last - first, bottom - top
    left, above, right, below = MOUTH_BOX
    return (
        round((left - first) / across * side),
        round((above - top) / down * side),
        round((right - first) / across * side),
        round((below - top) / down * side),
    )


def mouth_mask(side: int, region: str = "face") -> np.ndarray:
    """The mouth region as float32 [side, side], 1 inside and 0 outside, for pixels or latent cells of a region."""
    left, top, right, bottom = mouth_edges(side, region)
    mask = np.zeros((side, side), np.float32)
    mask[top:bottom, left:right] = 1.0
    return mask
