"""VoxCeleb2: `dev|test/mp4/idNNNNN/<video>/NNNNN.mp4`, or one `mp4` folder with `vox2_meta.csv`."""

import re
from pathlib import Path

from fedtalk_ray.corpora.source import ClipSource, CorpusError, by_identity, files_below, nothing_found

ROOT_HOLDS = "dev and test"
VOXCELEB2_SETS = ("dev", "test")
VOXCELEB2_META = "vox2_meta.csv"


def list_clips(root: Path) -> list[ClipSource]:
    """`dev|test/mp4/idNNNNN/<video>/NNNNN.mp4`; the test set is held out. Raises `CorpusError`.

    Where the sets lie in one `mp4` folder, `vox2_meta.csv` beside it says which is whose. The `aac` folder beside
    `mp4` is heard where a video is silent.
    """
    deep = "mp4/id[0-9]*/[!.]*/[!.]*.mp4"
    patterns = (*(f"{name}/{deep}" for name in VOXCELEB2_SETS), deep)
    sources: list[ClipSource] = []
    for name in VOXCELEB2_SETS:
        sources += _voxceleb2(root / name, files_below(root / name, (deep,)), {}, name)
    one_set_alone = root.name in VOXCELEB2_SETS and not (root / VOXCELEB2_META).is_file()
    if not one_set_alone and (mixed := files_below(root, (deep,))):
        sources += _voxceleb2(root, mixed, read_voxceleb2_sets(root / VOXCELEB2_META), None)
    if not sources:
        raise nothing_found("voxceleb2", root, "dev|test/mp4/idNNNNN/<video>/NNNNN.mp4", patterns)
    return by_identity(sources)


def read_voxceleb2_sets(path: Path) -> dict[str, str]:
    """The set, "dev" or "test", of every identity of a `vox2_meta.csv`. Raises `CorpusError`."""
    if not path.is_file():
        raise CorpusError(
            f"corpus voxceleb2: {path} is missing; without it the clips lie in dev/mp4 and test/mp4, or nobody knows "
            "who belongs to the test set"
        )
    return parse_voxceleb2_sets(path.read_text(encoding="utf-8-sig"), str(path))


def parse_voxceleb2_sets(text: str, file: str) -> dict[str, str]:
    """What `read_voxceleb2_sets` finds in `text`. Cells are padded with blanks or tabs, and a column may be added."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    header = rows[0] if rows else []
    if "VoxCeleb2 ID" not in header or "Set" not in header:
        raise CorpusError(f"{file}, line 1: {','.join(header)!r} names no columns 'VoxCeleb2 ID' and 'Set'")
    who, which = header.index("VoxCeleb2 ID"), header.index("Set")
    sets = {}
    for number, cells in enumerate(rows[1:], 2):
        if cells == [""]:
            continue
        if len(cells) != len(header) or not re.fullmatch(r"id\d+", cells[who]) or cells[which] not in VOXCELEB2_SETS:
            raise CorpusError(f"{file}, line {number}: {','.join(cells)!r} is not an idNNNNN with its set, dev or test")
        sets[cells[who]] = cells[which]
    return sets


def _voxceleb2(folder: Path, files: list[Path], sets: dict[str, str], name: str | None) -> list[ClipSource]:
    sounds = folder / "aac" if (folder / "aac").is_dir() else None
    sources = []
    for path in files:
        video, who = path.parent.name, path.parent.parent.name
        if name is None and who not in sets:
            raise CorpusError(f"corpus voxceleb2: {folder / VOXCELEB2_META} says no set for {who}, of which {path} is")
        sound = str(sounds / who / video / f"{path.stem}.m4a") if sounds else None
        held_out = (name or sets[who]) == "test"
        sources.append(ClipSource(who, f"{video}_{path.stem}", str(path), sound=sound, held_out=held_out))
    return sources
