"""A person's own mouth: the mouths of frames of hers whose lips are like those that are asked for.

What clients' sums know (`open_mouth`) is the mean of what is between many people's lips, without teeth. Whoever is
personalised gives clips of her own, and they show hers. These are pictures of her: they lie beside her own adapter and
stay there.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from fedtalk_ray.errors import RunError
from fedtalk_ray.media.face_template import REGIONS
from fedtalk_ray.media.flat_mouth import SIDE, flat_mouths, lay_flat_mouths, skin_around
from fedtalk_ray.model.adapters import read_tensors

FILE = "own_mouth.safetensors"

MOST_FRAMES = 1500
"""Frames of a person that are kept, evenly out of all: a minute, or 10 MB."""

MOST_SHAPE = 100.0
"""Deviations: frames with a number of their lip shape beyond are not kept. Nobody is asked for such lips, and of shapes
as large as numbers go nothing could be worked out."""

WIDTH = 0.25
"""How far apart lip shapes are, in deviations, that say much of each other. Seven held-out clips of six GRID clients
(not of s4, by whom this is reported), told what is heard, bent alone: ST-LPIPS / lips / sharpness / mouths in dB are
0.0267 / 0.81 / 0.97 / 28.89 at 0.25 and 0.0268 / 0.81 / 0.92 / 28.95 at 0.4; with the linear map that everybody has
0.0294 / 0.80 / - / 28.76; a still 0.0295 / 0 / 0.72 / 27.81. Her lips laid over the photo's too, for a quarter / half /
all of it: 0.0268 0.0271 0.0279, 28.99 29.00 28.71 dB. By 16 x 32 places sampled bilinearly, with hard edges, light as a
ratio and the photo's own inside where lips move little: 0.0276 / 0.80 / 0.82 / 28.94."""


class OwnMouth:
    """Flat mouths by their frames' lip shapes."""

    def __init__(self, shapes: torch.Tensor, mouths: torch.Tensor) -> None:
        """shapes [N, L], in deviations; mouths uint8 [N, 3, SIDE, SIDE] (`flat_mouth.flat_mouths`)."""
        chosen = torch.linspace(0, len(shapes) - 1, min(len(shapes), MOST_FRAMES)).round().long()
        self._shapes, self._mouths = shapes[chosen].float(), mouths[chosen]

    def shown(self, shapes: torch.Tensor) -> torch.Tensor:
        """Flat mouths of lip shapes [T, L], [T, 3, SIDE, SIDE] in 0..255: those of the frames weighted by a Gaussian of
        how unlike their shapes are."""
        unlike = torch.cdist(shapes, self._shapes.to(shapes)).square() / (2 * WIDTH**2)
        shares = torch.softmax(-unlike, dim=1)
        # Most frames say nothing of any of these shapes, and turning all into numbers takes longer than all else.
        counts = (shares > 1e-6).any(0)
        return (shares[:, counts] @ self._mouths.to(shapes.device)[counts].flatten(1).to(shapes)).view(
            -1, 3, SIDE, SIDE
        )

    def laid(self, soft: torch.Tensor, points: np.ndarray, moved: np.ndarray, shapes: torch.Tensor) -> torch.Tensor:
        """What is laid over a lower face whose lips have moved: colours and how much of them counts, [T, 4, w, w].

        soft: the picture [3, w, w], in [-1, 1], whose points are [68, 2]; moved: where they are then [T, 68, 2], both
        finite, in fractions of the crop. shapes: the lip shapes that they arrive at [T, L]. Her mouths have the light
        of the skin around the picture's.
        """
        points, moved = _in_lower_face(points), _in_lower_face(moved)
        here = flat_mouths(127.5 * (soft[None] + 1), points[None])
        shown = self.shown(shapes).to(soft)
        lit = (shown + skin_around(here) - skin_around(shown)).clamp(0, 255)
        laid = lay_flat_mouths(lit / 127.5 - 1, moved, soft.shape[-1])
        # Between dark and teeth a bicubic curve goes beyond both.
        laid[:, :3].clamp_(-1, 1)
        return laid

    def save(self, folder: Path) -> None:
        tensors = {"shapes": self._shapes, "mouths": self._mouths}
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, str(folder / FILE))


def _in_lower_face(points: np.ndarray) -> np.ndarray:
    """Points in fractions of the lower face, of those in fractions of the crop."""
    left, top, right, bottom = REGIONS["lower face"]
    return np.asarray((points - (left, top)) / (right - left, bottom - top))


def load_own_mouth(folder: Path, lip_numbers: int) -> OwnMouth | None:
    """What `OwnMouth.save` wrote into an adapter's folder, None where there is none: of a person who was not
    personalised, or by an older version. Raises `RunError` for a file that is damaged, or of other lip shapes."""
    if not (folder / FILE).exists():
        return None
    called = f"{folder / FILE}"
    read = read_tensors(folder / FILE, called)
    frames = max((len(value) for value in read.values() if value.ndim), default=0)
    wanted = {"shapes": (frames, lip_numbers), "mouths": (frames, 3, SIDE, SIDE)}
    found = {name: tuple(value.shape) for name, value in read.items()}
    if not frames or found != wanted or read["mouths"].dtype != torch.uint8:
        raise RunError(f"{called} does not fit this backbone: it holds {found}, not {wanted}; personalise again")
    if float(read["shapes"].abs().max()) > MOST_SHAPE:
        raise RunError(f"{called} is damaged: it holds lip shapes beyond {MOST_SHAPE:g} deviations; personalise again")
    return OwnMouth(read["shapes"], read["mouths"])
