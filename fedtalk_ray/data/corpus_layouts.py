"""RAVDESS, CREMA-D, LRS3 and VoxCeleb2 as they are distributed: which file is a clip of whom (docs/corpora.md).

Only names of files are read here, no file is decoded. Each list has the clips of one identity together.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from fedtalk_ray.data.corpus_source import ClipSource, CorpusError, nothing_found

RAVDESS = ("Actor_[0-9]*/[!.]*.mp4", "Video_Speech_Actor_[0-9]*/Actor_[0-9]*/[!.]*.mp4")
CREMA_D = ("VideoFlash/[!.]*.flv",)
LRS3_SETS = ("test", "trainval", "pretrain")
VOXCELEB2_SETS = ("dev", "test")
VOXCELEB2_META = "vox2_meta.csv"

# Modality, vocal channel, emotion, intensity, statement, repetition, actor.
_RAVDESS_NAME = re.compile(r"(\d\d)-(\d\d)-\d\d-\d\d-\d\d-\d\d-(\d\d)")
_SOUND_AND_PICTURE, _SPEECH = "01", "01"
# Actor, sentence, emotion, level; one file's level is a single X.
_CREMA_D_NAME = re.compile(r"(\d{4})_[A-Z]{3}_[A-Z]{3}_[A-Z]{1,2}")
_LFS_POINTER = b"version https://git-lfs"


def list_ravdess(root: Path) -> list[ClipSource]:
    """Spoken clips with sound, `Actor_NN/01-01-EE-II-SS-RR-NN.mp4`. Raises `CorpusError`."""
    files = _files(root, RAVDESS)
    if not files:
        raise nothing_found("ravdess", root, "Actor_NN/01-01-*.mp4", RAVDESS)
    found = {}
    for path in files:
        name = _RAVDESS_NAME.fullmatch(path.stem)
        if name and (name[1], name[2]) == (_SOUND_AND_PICTURE, _SPEECH):
            found[path.stem] = ClipSource(f"Actor_{name[3]}", path.stem, str(path))
    if not found:
        raise CorpusError(
            f"corpus ravdess: {root} holds {len(files)} videos, none of them spoken and with sound (01-01-*.mp4), "
            f"the first is {files[0].name}: unpack Video_Speech_Actor_NN.zip"
        )
    return _together(found.values())


def list_crema_d(root: Path) -> list[ClipSource]:
    """`VideoFlash/AAAA_SSS_EEE_LL.flv`; `AudioWAV` beside is heard where a video is silent. Raises `CorpusError`."""
    files = _files(root, CREMA_D)
    named = [(path, _CREMA_D_NAME.fullmatch(path.stem)) for path in files]
    sounds = root / "AudioWAV"
    sources = [
        ClipSource(name[1], path.stem, str(path), sound=str(sounds / f"{path.stem}.wav") if sounds.is_dir() else None)
        for path, name in named
        if name
    ]
    if not sources:
        raise nothing_found("crema-d", root, "VideoFlash/AAAA_SSS_EEE_LL.flv", CREMA_D)
    with open(files[0], "rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise CorpusError(
                f"corpus crema-d: {files[0]} is a pointer of Git LFS, no video: run `git lfs pull` in {root}"
            )
    return _together(sources)


def list_lrs3(root: Path) -> list[ClipSource]:
    """`pretrain|trainval|test/<video>/NNNNN.mp4`; the test set is held out. Raises `CorpusError`.

    An identity's clips come from one set: the sentences of trainval are cut from pretrain's clips, so both together
    would put what is trained on among what is held out.
    """
    patterns = tuple(f"{name}/[!.]*/[0-9]*.mp4" for name in LRS3_SETS)
    chosen: dict[str, str] = {}
    sources = []
    for name, pattern in zip(LRS3_SETS, patterns, strict=True):
        for path in _files(root, (pattern,)):
            if chosen.setdefault(path.parent.name, name) == name:
                sources.append(ClipSource(path.parent.name, path.stem, str(path), held_out=name == "test"))
    if not sources:
        raise nothing_found("lrs3", root, "pretrain|trainval|test/<video>/NNNNN.mp4", patterns)
    return _together(sources)


def list_voxceleb2(root: Path) -> list[ClipSource]:
    """`dev|test/mp4/idNNNNN/<video>/NNNNN.mp4`; the test set is held out. Raises `CorpusError`.

    Where the sets lie in one `mp4` folder, `vox2_meta.csv` beside it says which is whose. The `aac` folder beside
    `mp4` is heard where a video is silent.
    """
    deep = "mp4/id[0-9]*/[!.]*/[!.]*.mp4"
    patterns = (*(f"{name}/{deep}" for name in VOXCELEB2_SETS), deep)
    sources: list[ClipSource] = []
    for name in VOXCELEB2_SETS:
        sources += _voxceleb2(root / name, _files(root / name, (deep,)), {}, name)
    one_set_alone = root.name in VOXCELEB2_SETS and not (root / VOXCELEB2_META).is_file()
    if not one_set_alone and (mixed := _files(root, (deep,))):
        sources += _voxceleb2(root, mixed, read_voxceleb2_sets(root / VOXCELEB2_META), None)
    if not sources:
        raise nothing_found("voxceleb2", root, "dev|test/mp4/idNNNNN/<video>/NNNNN.mp4", patterns)
    return _together(sources)


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


def _files(root: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted(path for pattern in patterns for path in root.glob(pattern))


def _together(sources: Iterable[ClipSource]) -> list[ClipSource]:
    return sorted(sources, key=lambda source: (source.identity, source.clip))
