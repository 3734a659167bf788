"""What sounds mean for one person's lips beyond what they mean for everybody's: how far she opens them, and which words
she says otherwise.

A linear map beside the one that clients' sums know (`speech_code.LipRegression`). It is learned from her own sound and
lips alone, lies beside her adapter and stays there.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from fedtalk_ray.errors import RunError
from fedtalk_ray.model.adapters import read_tensors
from fedtalk_ray.model.speech_code import LipRegression

FILE = "own_hearing.safetensors"

MOST_WEIGHT = 100.0
"""The largest value of an own map. s4's are 0.4 at most, everybody's 1."""


@dataclass(frozen=True)
class OwnHearing:
    """weight [L, F], bias [L]: what is added to everybody's lip shapes, in deviations, of a frame's F features."""

    weight: torch.Tensor
    bias: torch.Tensor

    @torch.no_grad()
    def join(self, encoder: LipRegression) -> None:
        """Adds itself to what an encoder hears, for good."""
        lips = len(self.bias)
        encoder.linear1.weight[:lips] += self.weight.to(encoder.linear1.weight)
        encoder.linear1.bias[:lips] += self.bias.to(encoder.linear1.bias)

    def save(self, folder: Path) -> None:
        tensors = {"weight": self.weight, "bias": self.bias}
        save_file({name: value.float().contiguous().cpu() for name, value in tensors.items()}, str(folder / FILE))


def load_own_hearing(folder: Path, lip_numbers: int, features: int) -> OwnHearing | None:
    """What `OwnHearing.save` wrote into an adapter's folder, None where there is none: of a person who was not
    personalised, or by an older version. Raises `RunError` for a file that is damaged, or of another encoder."""
    if not (folder / FILE).exists():
        return None
    called = f"{folder / FILE}"
    read = read_tensors(folder / FILE, called)
    wanted = {"weight": (lip_numbers, features), "bias": (lip_numbers,)}
    found = {name: tuple(value.shape) for name, value in read.items()}
    if found != wanted:
        raise RunError(f"{called} does not fit this backbone: it holds {found}, not {wanted}; personalise again")
    if max(float(value.abs().max()) for value in read.values()) > MOST_WEIGHT:
        raise RunError(f"{called} is damaged: it holds values of more than {MOST_WEIGHT:g}; personalise again")
    return OwnHearing(read["weight"], read["bias"])
