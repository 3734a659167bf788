"""How different two pictures look, judged by deep features: LPIPS (arXiv 1801.03924), or its shift-tolerant kin.

LPIPS is torchmetrics'; it needs torchvision and AlexNet's weights from torch.hub. Where those cannot be had, ST-LPIPS
(arXiv 2207.13686) of the package `stlpips-pytorch` stands in: it carries all its weights, and its figures are not
LPIPS', so the column has another name. (Parts of that package are for non-commercial use only, CC BY-NC-SA 4.0.)
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fedtalk_ray.evaluation.weights import UNUSABLE, impatient, obtainable
from fedtalk_ray.media.dlib_models import MissingModelError
from fedtalk_ray.model.st_lpips import load_st_lpips

LPIPS, ST_LPIPS = "lpips", "st_lpips"

FRAME_STEP = 5
"""Every fifth frame is compared, five a second: neighbours look alike, and a pair costs 25 ms on one core."""


@dataclass(frozen=True)
class PerceptualDistance:
    """name: "lpips" or "st_lpips". network: two pictures float32 [1, 3, H, W] in [-1, 1] to one value."""

    name: str
    network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    @torch.no_grad()
    def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
        """The mean over every `FRAME_STEP`-th frame; 0 for equal clips, larger for less alike.

        a, b: uint8 [T, H, W, 3] of one shape, at their own size (LPIPS was learned on 64 x 64 pixels).
        Raises `ValueError` when the shapes differ.
        """
        if a.shape != b.shape or a.ndim != 4 or a.dtype != np.uint8 or b.dtype != np.uint8:
            raise ValueError(f"two uint8 clips of one shape are compared, got {list(a.shape)} and {list(b.shape)}")
        pairs = zip(a[::FRAME_STEP], b[::FRAME_STEP], strict=True)
        return float(np.mean([float(self.network(_picture(one), _picture(other))) for one, other in pairs]))


def load_perceptual() -> PerceptualDistance:
    """LPIPS where its weights are cached or can be fetched, else ST-LPIPS.

    Raises `MissingModelError`, one line that says what to install, when neither is there.
    """
    for load in (_load_lpips, _load_st_lpips):
        found = load()
        if found is not None:
            return found
    raise MissingModelError(
        "no perceptual distance: LPIPS' weights can be neither found nor fetched (they need torchvision), and "
        "ST-LPIPS is not installed: pip install stlpips-pytorch"
    )


def _load_lpips() -> PerceptualDistance | None:
    if importlib.util.find_spec("torchvision") is None:
        return None
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    from torchvision.models import AlexNet_Weights

    if not obtainable(AlexNet_Weights.DEFAULT.url):
        return None
    try:
        with impatient():
            metric = LearnedPerceptualImagePatchSimilarity(net_type="alex")
    except UNUSABLE:
        return None
    return PerceptualDistance(LPIPS, metric)


def _load_st_lpips() -> PerceptualDistance | None:
    network = load_st_lpips("alex")
    return None if network is None else PerceptualDistance(ST_LPIPS, network)


def _picture(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frame.transpose(2, 0, 1)[None].astype(np.float32)) / 127.5 - 1
