"""RAVDESS: `Actor_NN/01-01-EE-II-SS-RR-NN.mp4`, or `Video_Speech_Actor_NN/` around it."""

import re
from pathlib import Path

from fedtalk_ray.corpora.source import ClipSource, CorpusError, by_identity, files_below, nothing_found

ROOT_HOLDS = "Actor_01, Actor_02, ..."
RAVDESS = ("Actor_[0-9]*/[!.]*.mp4", "Video_Speech_Actor_[0-9]*/Actor_[0-9]*/[!.]*.mp4")

# Modality, vocal channel, emotion, intensity, statement, repetition, actor.
_RAVDESS_NAME = re.compile(r"(\d\d)-(\d\d)-\d\d-\d\d-\d\d-\d\d-(\d\d)")
_SOUND_AND_PICTURE, _SPEECH = "01", "01"


def list_clips(root: Path) -> list[ClipSource]:
    """Spoken clips with sound, `Actor_NN/01-01-EE-II-SS-RR-NN.mp4`. Raises `CorpusError`."""
    files = files_below(root, RAVDESS)
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
    return by_identity(found.values())
