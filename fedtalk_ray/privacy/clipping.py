"""A bound on what one client can change: its update is weighted first and clipped after.

Guarantee, to whoever holds the other clients' data: one client moves the sum by at most 1 in units of the clip norm,
whatever its data, its weight or its score. A client that lies to its own code is not bound by it.

Weight, then clip (PrivFedTalk's weights are the client's own secret):

    a_k = omega_k * Delta_k * min(1, C / ||omega_k * Delta_k||) / C        ||a_k|| <= 1
    omega_k = weight(min(n_k, n_max), s_k) / w_ref                         n_max, w_ref public

Clipping first and weighting after would let the weight scale the bound; at the same noise its error was several times
larger.

>>> import numpy as np
>>> weigh_and_clip(np.array([3.0, 4.0]), weight=1.0, clip_norm=2.5)
(array([0.6, 0.8]), True)
>>> weigh_and_clip(np.array([3.0, 4.0]), weight=0.25, clip_norm=2.5)
(array([0.3, 0.4]), False)
"""

import math

import numpy as np

from fedtalk_ray.privacy.protocol import Aborted, Code

_RATE, _QUANTILE, _COUNT_NOISE = 0.2, 0.5, 1 / 20
"""Andrew et al. 2021: geometric steps of 0.2 towards the median; the count's noise is n / 20."""


def weigh_and_clip(update: np.ndarray, weight: float, clip_norm: float) -> tuple[np.ndarray, bool]:
    """a_k, float64 [D] of norm at most 1, and whether the clip bound. Raises `Aborted` for what is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        weighted = np.multiply(update, weight, dtype=np.float64)
        # Values that are not finite make the norm so, whatever the weight.
        norm = math.sqrt(np.einsum("i,i->", weighted, weighted))
    if not (math.isfinite(norm) and 0 <= weight < math.inf):
        raise Aborted(Code.NOT_FINITE)
    weighted /= max(norm, clip_norm)
    return weighted, norm > clip_norm


def adapted(clip_norm: float, unclipped_share: float) -> float:
    """The next round's clip norm, C * exp(-0.2 * (b - 0.5)): down where more than half of the cohort stay below it."""
    return clip_norm * math.exp(-_RATE * (min(max(unclipped_share, 0.0), 1.0) - _QUANTILE))


def bit_size(noise_multiplier: float, cohort: float) -> float:
    """How large the quantile bit (minus one half) is written, kappa, so that noise on the count is cohort / 20.

    The vector with its bit has norm at most sqrt(1 + kappa^2 / 4), and noise is `noise_multiplier` times that.
    """
    wanted = noise_multiplier / (_COUNT_NOISE * cohort)
    # kappa = wanted * sqrt(1 + kappa^2 / 4), solved for kappa.
    return wanted / math.sqrt(max(1 - wanted**2 / 4, 0.01))
