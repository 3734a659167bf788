"""One clip to prepare, whatever corpus it is of, and the error of a corpus that cannot be listed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedtalk_ray.errors import UserError
from fedtalk_ray.media.excerpt import Excerpt
from fedtalk_ray.media.video import WHOLE_PICTURE, Box


class CorpusError(UserError):
    """A corpus is missing, empty or malformed, or its name is unknown."""


@dataclass(frozen=True)
class ClipSource:
    """One clip to prepare: a video file or a part of one, or a clip that is drawn (`path` is None).

    begin, end: seconds from the start of the file; an infinite end is the file's own.
    crop: the part of the picture that holds the face; `WHOLE_PICTURE` cuts nothing off.
    sound: a file heard where the video itself has no sound; it starts with the video.
    held_out: the corpus counts this identity to its own test set.
    kind: of people who are drawn (`corpora.synthetic`).
    """

    identity: str
    clip: str
    path: str | None = None
    synthetic_identity: int = 0
    synthetic_clip: int = 0
    seed: int = 0
    begin: float = 0.0
    end: float = math.inf
    crop: Box = WHOLE_PICTURE
    sound: str | None = None
    held_out: bool = False
    kind: str = "synthetic"

    def excerpt(self) -> Excerpt | None:
        """Its pictures; None for a clip that is drawn."""
        return None if self.path is None else Excerpt(self.path, self.begin, self.end, self.crop)

    def row(self) -> dict:
        """All fields as a row of one kind for every clip: "" stands for None, a list for the box."""
        return vars(self) | {"path": self.path or "", "sound": self.sound or "", "crop": list(self.crop)}

    @staticmethod
    def from_row(row: dict) -> "ClipSource":
        """The clip whose `row` this is."""
        left, top, width, height = (int(edge) for edge in row["crop"])
        crop = (left, top, width, height)
        return ClipSource(**row | {"path": row["path"] or None, "sound": row["sound"] or None, "crop": crop})


def nothing_found(corpus: str, root: Path, expected: str, patterns: tuple[str, ...]) -> CorpusError:
    """Says what a corpus folder should hold, and which folder near it does, by the first pattern that is found."""
    below = sorted(path for path in root.glob("[!.]*") if path.is_dir())[:100]
    above = root.absolute().parent
    near = [above, above.parent, *below, *(deep for path in below[:10] for deep in path.glob("[!.]*/"))]
    for pattern in patterns:
        for folder in near:
            if next(folder.glob(pattern), None):
                return CorpusError(
                    f"corpus {corpus}: {root} holds no {expected}, but {folder} does: give --root {folder}"
                )
    return CorpusError(f"corpus {corpus}: {root} holds no {expected}")


def files_below(root: Path, patterns: Iterable[str]) -> list[Path]:
    """Files by any of the patterns, sorted."""
    return sorted(path for pattern in patterns for path in root.glob(pattern))


def by_identity(sources: Iterable[ClipSource]) -> list[ClipSource]:
    """The clips with those of one identity together, sorted."""
    return sorted(sources, key=lambda source: (source.identity, source.clip))
