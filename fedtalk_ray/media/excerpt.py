"""A part of a video file: its frames, and a line that says where a prepared clip's pictures can be seen again."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from fedtalk_ray.media.video import FPS, WHOLE_PICTURE, Box, frames_of

KEPT_BYTES = 128 << 20
"""Decoded frames of a `Footage` that are kept for the next time they are gone through."""


class Footage:
    """The frames of `frames_of`, to be gone through several times: kept while they are few, else decoded anew."""

    def __init__(
        self,
        path: str | Path,
        begin: float = 0.0,
        end: float = math.inf,
        crop: Box = WHOLE_PICTURE,
        rate: Fraction | int = FPS,
    ) -> None:
        self._span = (path, begin, end, crop, rate)
        self._kept: list[np.ndarray] = []
        self._complete = False

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._complete:
            yield from self._kept
            return
        self._kept, fits, size = [], True, 0
        for frame in frames_of(*self._span):
            size += frame.nbytes
            fits = fits and size <= KEPT_BYTES
            if fits:
                self._kept.append(frame)
            else:
                self._kept = []
            yield frame
        self._complete = fits

    def part(self, first: int, end: int) -> Iterator[np.ndarray]:
        """Its frames from number first to before number end, which may lie behind its last."""
        if self._complete:
            return iter(self._kept[first:end])
        path, begin, _, crop, rate = self._span
        return frames_of(path, begin + float(first / rate), begin + float(end / rate), crop, rate, begin == 0)


@dataclass(frozen=True)
class Excerpt:
    """path: of a video file. begin, end: seconds from its start, an infinite end is the file's own. crop: the part of
    its picture that is looked at."""

    path: str
    begin: float = 0.0
    end: float = math.inf
    crop: Box = WHOLE_PICTURE

    def footage(self) -> Footage:
        """Its frames, 25 a second."""
        return Footage(self.path, self.begin, self.end, self.crop)

    def text(self) -> str:
        """JSON of one line: an absolute path, and what is not the default."""
        more = {name: value for name, value in vars(self).items() if value != getattr(Excerpt, name, None)}
        return json.dumps(more | {"path": str(Path(self.path).absolute())})


def excerpt_of(text: str) -> Excerpt | None:
    """What `Excerpt.text` wrote; None for any other text, and for a file that is gone or may not be looked at."""
    try:
        said = json.loads(text)
        left, top, width, height = said.get("crop", WHOLE_PICTURE)
        excerpt = Excerpt(**said | {"crop": (left, top, width, height)})
        return excerpt if Path(excerpt.path).is_file() else None
    except (ValueError, TypeError, AttributeError, OSError):
        return None
