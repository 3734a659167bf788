"""A part of a video file, written down in a line: where the pictures of a prepared clip can be seen again."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from fedtalk_ray.media.video import WHOLE_PICTURE, Box, Footage


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
