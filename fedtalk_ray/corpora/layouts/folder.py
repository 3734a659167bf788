"""A folder of anybody's clips, `<identity>/<clip>.mp4` or another container that FFmpeg reads."""

from pathlib import Path

from fedtalk_ray.corpora.source import ClipSource, CorpusError

ROOT_HOLDS = "<identity>/<clip>"
SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


def list_clips(root: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[ClipSource]:
    """Sorted. Raises `CorpusError` when the folder holds no such file."""
    found = (path for path in root.glob("[!.]*/[!.]*") if path.suffix.lower() in suffixes and path.is_file())
    files = sorted(found)
    if not files:
        raise CorpusError(f"corpus folder {root} holds no <identity>/<clip>{'|'.join(sorted(suffixes))}")
    return [ClipSource(path.parent.name, path.stem, str(path)) for path in files]
