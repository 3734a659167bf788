"""Where shards lie: a local folder, or a URI that pyarrow knows (s3://bucket/shards, gs://, hdfs://, file:///...)."""

from pathlib import Path

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from fedtalk_ray.errors import ShardError


def is_remote(place: str | Path) -> bool:
    """Whether `place` is a URI, which may mean that every read crosses a network."""
    return "://" in str(place)


def located(place: str | Path) -> tuple[FileSystem, str]:
    """The file system and the path on it. Raises `ShardError` for a URI that pyarrow cannot use."""
    if not is_remote(place):
        return LocalFileSystem(), str(place)
    try:
        return FileSystem.from_uri(str(place))
    except (ArrowException, OSError) as error:
        raise ShardError(f"shards {place} cannot be reached: {' '.join(str(error).split())}") from error


def beneath(root: str | Path, *parts: str) -> str:
    """A place under `root`, written as `root` is."""
    return "/".join((str(root).rstrip("/"), *parts)) if is_remote(root) else str(Path(root).joinpath(*parts))


def is_folder(place: str | Path) -> bool:
    """Whether there is a folder. Object stores have none: there it is whether anything lies beneath."""
    system, path = located(place)
    return bool(system.get_file_info(path).type == FileType.Directory)


def files_in(folder: str | Path) -> list[str]:
    """Names of the files in a folder, sorted; none where there is no folder."""
    system, path = located(folder)
    found = system.get_file_info(FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if info.is_file)
