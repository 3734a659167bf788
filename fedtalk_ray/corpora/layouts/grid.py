"""GRID: `s1/<clip>.mpg`, `s2/...`, as unpacked."""

from pathlib import Path

from fedtalk_ray.corpora.layouts import folder
from fedtalk_ray.corpora.source import ClipSource

ROOT_HOLDS = folder.ROOT_HOLDS


def list_clips(root: Path) -> list[ClipSource]:
    """Sorted. Raises `CorpusError` when the folder holds no such file."""
    return folder.list_clips(root, (".mp4", ".mpg"))
