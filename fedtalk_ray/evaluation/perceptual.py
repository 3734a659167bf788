"""How different two pictures look, judged by deep features: LPIPS (arXiv 1801.03924), or its shift-tolerant kin.

LPIPS is torchmetrics'; it needs torchvision and AlexNet's weights from torch.hub. Where those cannot be had, ST-LPIPS
(arXiv 2207.13686) of the package `stlpips-pytorch` stands in: it carries all its weights, and its figures are not
LPIPS', so the column has another name. (Parts of that package are for non-commercial use only, CC BY-NC-SA 4.0.)
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from fedtalk_ray.evaluation.weights import UNUSABLE, impatient, obtainable
from fedtalk_ray.media.dlib_models import MissingModelError

LPIPS, ST_LPIPS = "lpips", "st_lpips"

FRAME_STEP = 5
"""Every fifth frame is compared, five a second: neighbours look alike, and a pair costs 25 ms on one core."""

UNUSED_IMPORTS = {"torchvision": "models", "torchsummary": "summary", "IPython": "embed"}
"""What stlpips_pytorch imports and does not use for the network that is loaded here."""


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
    if importlib.util.find_spec("stlpips_pytorch") is None:
        return None
    with _stand_ins(UNUSED_IMPORTS):
        stlpips = importlib.import_module("stlpips_pytorch.stlpips")
    network = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    return PerceptualDistance(ST_LPIPS, network.eval())


def _picture(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frame.transpose(2, 0, 1)[None].astype(np.float32)) / 127.5 - 1


@contextlib.contextmanager
def _stand_ins(wanted: dict[str, str]) -> Iterator[None]:
    """Inside, the modules that are not installed can be imported, each with the named attribute; they hold nothing."""
    absent = [name for name in wanted if name not in sys.modules and importlib.util.find_spec(name) is None]
    for name in absent:
        module = ModuleType(name)
        setattr(module, wanted[name], None)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
