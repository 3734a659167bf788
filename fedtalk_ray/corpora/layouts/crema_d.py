"""CREMA-D: `VideoFlash/AAAA_SSS_EEE_LL.flv`, with `AudioWAV` beside it."""

import re
from pathlib import Path

from fedtalk_ray.corpora.source import ClipSource, CorpusError, by_identity, files_below, nothing_found

ROOT_HOLDS = "VideoFlash"
CREMA_D = ("VideoFlash/[!.]*.flv",)

# Actor, sentence, emotion, level; one file's level is a single X.
_CREMA_D_NAME = re.compile(r"(\d{4})_[A-Z]{3}_[A-Z]{3}_[A-Z]{1,2}")
_LFS_POINTER = b"version https://git-lfs"


def list_clips(root: Path) -> list[ClipSource]:
    """`VideoFlash/AAAA_SSS_EEE_LL.flv`; `AudioWAV` beside is heard where a video is silent. Raises `CorpusError`."""
    files = files_below(root, CREMA_D)
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
    return by_identity(sources)
