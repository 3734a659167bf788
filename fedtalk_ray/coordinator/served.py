"""Files that sites fetch by their SHA-256: the model to start from, results of phases, shared parameters.

A name is a hash, so nothing that is asked for is a path, and what arrives is looked at by whoever asked.
"""

import hashlib
import re
from pathlib import Path

from fedtalk_ray.errors import RunError
from fedtalk_ray.messages import Part
from fedtalk_ray.outputs import new_file

SAFE = frozenset({".json", ".safetensors", ".txt", ".md"})
"""What a model may consist of: nothing that is unpickled when it is loaded."""

_HASH = re.compile(r"[0-9a-f]{64}")
_PARTS = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")


class ServedFiles:
    """A folder of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, content: bytes) -> Part:
        """Keeps the content; what sites are told of it."""
        digest = hashlib.sha256(content)
        place = self._folder / digest.hexdigest()
        if not place.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            with new_file(place) as new:
                new.write_bytes(content)
        return Part(name, digest.digest(), len(content))

    def add_model(self, folder: Path, within: str = "") -> tuple[Part, ...]:
        """Keeps every file of a pipeline's folder, under names that begin with `within`.

        Raises `RunError` for one that could not be loaded safely.
        """
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            if path.suffix not in SAFE:
                raise RunError(f"{path} cannot be served to sites: a model's files are {', '.join(sorted(SAFE))}")
        return tuple(self.add(within + path.relative_to(folder).as_posix(), path.read_bytes()) for path in files)

    def keep_only(self, parts: set[bytes]) -> None:
        """Removes what nobody needs any more. parts: the hashes that stay."""
        for place in self._folder.iterdir() if self._folder.is_dir() else ():
            if _HASH.fullmatch(place.name) and bytes.fromhex(place.name) not in parts:
                place.unlink(missing_ok=True)

    def find(self, digest: str) -> Path | None:
        """Where the file of that hash lies; None for none, and for what is no hash."""
        place = self._folder / digest if _HASH.fullmatch(digest) else None
        return place if place is not None and place.is_file() else None


def safe_name(name: str) -> str:
    """A file's name inside a model's folder. Raises `RunError` for one that leads out of it or would run code."""
    inside = _PARTS.fullmatch(name) and not {".", ".."} & set(name.split("/"))
    if not inside or Path(name).suffix not in SAFE:
        raise RunError(f"the coordinator offers a file {name!r}, which has no place in a model's folder")
    return name
