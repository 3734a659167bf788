"""The networks of ST-LPIPS (arXiv 2207.13686): AlexNet, by which clips are judged, and VGG-16, by which a decoder may
be taught.

The package `stlpips-pytorch` carries all their weights. Parts of it are for non-commercial use only (CC BY-NC-SA 4.0),
which is why nothing asks for it by default.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fedtalk_ray.errors import RunError

UNUSED_IMPORTS = {"torchvision": "models", "torchsummary": "summary", "IPython": "embed"}
"""What stlpips_pytorch imports and does not use for the networks that are loaded here."""


def load_st_lpips(network: str) -> Any | None:
    """The package's module for pictures float32 [B, 3, H, W] in [-1, 1]; None where it is not installed.

    network: "alex" or "vgg".
    """
    if importlib.util.find_spec("stlpips_pytorch") is None:
        return None
    with _stand_ins(UNUSED_IMPORTS):
        stlpips = importlib.import_module("stlpips_pytorch.stlpips")
    return stlpips.LPIPS(net=network, variant="shift_tolerant", verbose=False).eval()


def check_vgg_is_there(asked_by: str = "sharpness.vgg") -> None:
    """Raises `RunError` where the package is not installed; loads nothing."""
    if importlib.util.find_spec("stlpips_pytorch") is None:
        raise RunError(
            f"{asked_by} asks for VGG-16, which comes with stlpips-pytorch (parts of it are for non-commercial use "
            f"only): pip install stlpips-pytorch, or leave {asked_by} at 0"
        )


class VggFeatures(nn.Module):
    """The first two stages of VGG-16 (to relu1_2 and relu2_2), frozen: how unlike two pictures look close by."""

    def __init__(self) -> None:
        """Raises `RunError` where the package is not installed."""
        super().__init__()
        check_vgg_is_there()
        network: Any = load_st_lpips("vgg")
        self.scale, self.stages = network.scaling_layer, nn.ModuleList([network.net.slice1, network.net.slice2])
        self.eval().requires_grad_(False)

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """float [B, 3, H, W] in [-1, 1] to [B, 64, H, W] and, pooled once, [B, 128, H / 2 + 1, W / 2 + 1]."""
        hidden, found = self.scale(pictures), []
        for stage in self.stages:
            hidden = stage(hidden)
            found.append(hidden)
        return found

    def distance(self, made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """The mean absolute difference of each stage's features, added up; differentiable in `made`."""
        with torch.no_grad():
            wanted = self(true)
        return torch.stack([(one - other).abs().mean() for one, other in zip(self(made), wanted, strict=True)]).sum()


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
