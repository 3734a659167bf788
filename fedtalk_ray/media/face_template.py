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


def mouth_mask(side: int) -> np.ndarray:
    """The mouth region as float32 [side, side], 1 inside and 0 outside, for pixels or for latent cells."""
    left, top, right, bottom = (round(edge * side) for edge in MOUTH_BOX)
    mask = np.zeros((side, side), np.float32)
    mask[top:bottom, left:right] = 1.0
    return mask
