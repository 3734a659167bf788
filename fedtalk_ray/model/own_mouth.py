"""What one person's own opened mouth shows: the insides of frames of hers whose lips are like those that are asked for.

What clients' sums know (`open_mouth`) is a mean of many people's mouths, without teeth. Whoever is personalised gives
clips of her own, and they show hers. These are pictures of her: they lie beside her own adapter and stay there.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from fedtalk_ray.errors import RunError
from fedtalk_ray.model.adapters import read_tensors
from fedtalk_ray.model.open_mouth import ACROSS, ALONG, MOST_LIGHT

FILE = "own_mouth.safetensors"

MOST_FRAMES = 2000
"""Frames of a person that are kept, evenly out of all in which her lips are apart: 80 seconds, or 6 MB."""

FINER = 2
"""How many times as finely a mouth of one's own is known as everybody's, along and across."""

WIDTH = 0.25
"""How far apart lip shapes are, in deviations, that say much of each other. Seven held-out clips of six GRID clients
(not of s4, by whom this is reported), told what is heard: ST-LPIPS / lips / mouths in dB are 0.0294 / 0.80 / 28.76
with everybody's insides, and with their own 0.0274 / 0.78 / 28.91 at 0.1, 0.0274 / 0.79 / 28.92 at 0.15, 0.0276 /
0.80 / 28.94 at 0.25, 0.0278 / 0.80 / 28.96 at 0.35, 0.0281 / 0.81 / 28.97 at 0.5; copying 0.0295. With true lips told
0.0291 / 0.96 / 30.23, and 0.0270 / 0.91 / 30.46 at 0.25. (A linear map of the shape, half as fine and 0.9 as light:
0.0298 / 0.82 / 28.83.)"""


class OwnMouth:
    """Insides in units of the colour around the mouth, by their frames' lip shapes."""

    def __init__(self, shapes: torch.Tensor, colours: torch.Tensor, weights: torch.Tensor) -> None:
        """shapes [N, L], in deviations; colours [N, 3, V, U], of `FINER * ACROSS` and `FINER * ALONG` places; weights
        [N]: how much each frame counts."""
        chosen = torch.linspace(0, len(shapes) - 1, min(len(shapes), MOST_FRAMES)).round().long()
        self._shapes, self._weights = (each[chosen].float() for each in (shapes, weights))
        # As exact as they are written.
        self._colours = colours[chosen].half().float()

    def shown(self, shapes: torch.Tensor) -> torch.Tensor:
        """Insides of mouths of lip shapes [T, L]: [T, 3, V, U], those of the frames weighted by a Gaussian of how
        unlike their shapes are."""
        own, colours, weights = (each.to(shapes) for each in (self._shapes, self._colours, self._weights))
        unlike = torch.cdist(shapes, own).square() / (2 * WIDTH**2)
        shares = torch.softmax(weights.log() - unlike, dim=1)
        return (shares @ colours.flatten(1)).view(-1, *colours.shape[1:])

    def save(self, folder: Path) -> None:
        tensors = {"shapes": self._shapes, "colours": self._colours.half(), "weights": self._weights}
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, str(folder / FILE))


def load_own_mouth(folder: Path, lip_numbers: int) -> OwnMouth | None:
    """What `OwnMouth.save` wrote into an adapter's folder, None where there is none: of a person who was not
    personalised, or by an older version. Raises `RunError` for a file that is damaged, or of other lip shapes."""
    if not (folder / FILE).exists():
        return None
    called = f"{folder / FILE}"
    read = read_tensors(folder / FILE, called)
    frames = len(read.get("weights", ()))
    wanted = {
        "shapes": (frames, lip_numbers),
        "colours": (frames, 3, FINER * ACROSS, FINER * ALONG),
        "weights": (frames,),
    }
    found = {name: tuple(value.shape) for name, value in read.items()}
    if not frames or found != wanted:
        raise RunError(f"{called} does not fit this backbone: it holds {found}, not {wanted}; personalise again")
    if not (read["weights"] > 0).all() or not ((read["colours"] >= 0) & (read["colours"] <= MOST_LIGHT)).all():
        raise RunError(f"{called} is damaged: it holds colours or weights that are none; personalise again")
    return OwnMouth(read["shapes"], read["colours"], read["weights"])
