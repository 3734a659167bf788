"""Which clips a corpus holds, which of them are taken, and how one of them becomes pictures and sound."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from fedtalk_ray.corpora import layouts, synthetic
from fedtalk_ray.corpora.source import ClipSource, CorpusError
from fedtalk_ray.media.faces import crop_faces, face_transforms, find_landmarks, places_of_crops, smooth_landmarks
from fedtalk_ray.media.framing import ALIGNED, Framing, in_crop
from fedtalk_ray.media.lips import face_landmarks
from fedtalk_ray.media.speech import LOG_MEL, PRETRAINED
from fedtalk_ray.media.video import SAMPLE_RATE, has_sound, read_audio, sound_of

_NAMES_SHOWN = 20


def list_corpus(
    corpus: str, root: str | Path | None, *, identities: int = 8, clips: int = 6, seed: int = 0
) -> list[ClipSource]:
    """All clips of a corpus, those of one identity together. Raises `CorpusError` for what cannot be listed."""
    if corpus in synthetic.KINDS:
        return list_synthetic(identities, clips, seed, corpus)
    if corpus not in layouts.available():
        known = ", ".join([*layouts.available(), *synthetic.KINDS])
        raise CorpusError(f"corpus {corpus!r} is unknown; known: {known}")
    found = layouts.layout(corpus)
    if root is None:
        raise CorpusError(f"corpus {corpus} needs --root, the folder that holds {found.ROOT_HOLDS}")
    if not Path(root).is_dir():
        raise CorpusError(f"corpus folder {root} does not exist")
    return list(found.list_clips(Path(root)))


def list_synthetic(identities: int, clips: int, seed: int, kind: str = synthetic.PEOPLE) -> list[ClipSource]:
    """`clips` clips of each of `identities` drawn people of a kind."""
    if identities < 1 or clips < 1:
        raise CorpusError(f"--identities {identities} --clips {clips}: both must be at least 1")
    return [
        ClipSource(synthetic.identity_name(who), synthetic.clip_name(clip), None, who, clip, seed, kind=kind)
        for who in range(identities)
        for clip in range(clips)
    ]


def only_identities(sources: list[ClipSource], names: list[str]) -> list[ClipSource]:
    """The clips of the named identities. Raises `CorpusError` for one that the corpus does not hold."""
    known = sorted({source.identity for source in sources})
    for name in names:
        if name not in known:
            raise CorpusError(f"--only {name}: no such identity; the corpus has {named(known)}")
    return [source for source in sources if source.identity in names]


def at_most(sources: list[ClipSource], clips: int) -> list[ClipSource]:
    """At most `clips` clips of each identity, spread evenly over those it has."""
    if clips < 1:
        raise CorpusError(f"--max-clips {clips}: must be at least 1")
    groups = [list(group) for _, group in groupby(sources, lambda source: source.identity)]
    return [
        group[index * len(group) // min(clips, len(group))]
        for group in groups
        for index in range(min(clips, len(group)))
    ]


def own_test_set(sources: list[ClipSource]) -> list[str] | None:
    """The identities of the corpus's own test set, None where it defines none."""
    return sorted({source.identity for source in sources if source.held_out}) or None


def usual_speech(corpus: str) -> str:
    """What a corpus's voices are heard by unless asked otherwise (`media.speech.load_speech_features`)."""
    return LOG_MEL if corpus in synthetic.KINDS else PRETRAINED


def named(names: list[str]) -> str:
    """The names, comma-separated, the first of them where they are many."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown}, ... ({len(names)} in all)"


@dataclass
class Clip:
    """One clip on its way into shards.

    frames: how many. crops: face crops uint8 [size, size, 3], made one at a time. places: where each lies in its
    picture, float32 [frames, 2, 3]. audio: float32 [N]. landmarks: in fractions of the crops, float32 [frames, 68, 2];
    None where the crops are aligned, in which they are found better than in the picture.
    """

    frames: int
    places: np.ndarray
    crops: Iterator[np.ndarray]
    audio: np.ndarray
    landmarks: np.ndarray | None = None


def open_clip(source: ClipSource, size: int, framing: Framing = ALIGNED) -> Clip:
    """The clip with its face found in every frame; nothing but crops is held, however long it is.

    Raises `media.video.VideoError` or `media.faces.NoFaceError` when the clip cannot be used.
    """
    excerpt = source.excerpt()
    if excerpt is None:
        drawn = synthetic.render_clip(
            source.synthetic_identity, source.synthetic_clip, seed=source.seed, size=size, kind=source.kind
        )
        count, frames = len(drawn.video.frames), drawn.video.frames
        if framing is not ALIGNED:
            return _framed(frames, size * face_landmarks(frames).astype(np.float64), size, framing, drawn.video.audio)
        return Clip(count, places_of_crops(size, count).astype(np.float32), iter(frames), drawn.video.audio)
    audio = sound_beside(source)
    footage = excerpt.footage()
    if framing is not ALIGNED:
        return _framed(footage, find_landmarks(footage), size, framing, audio)
    transforms = face_transforms(footage)
    return Clip(len(transforms), transforms.astype(np.float32), crop_faces(footage, transforms, size), audio)


def _framed(pictures: Iterable[np.ndarray], points: np.ndarray, size: int, framing: Framing, audio: np.ndarray) -> Clip:
    """points: the pictures' landmarks, float64 [T, 68, 2] in pixels."""
    transforms = framing.transforms(smooth_landmarks(points))
    crops, places = crop_faces(pictures, transforms, size), transforms.astype(np.float32)
    return Clip(len(places), places, crops, audio, in_crop(points, transforms))


def sound_beside(source: ClipSource) -> np.ndarray:
    """The sound of a clip, float32 [N]: the video's own, or where it has none that of the file beside it."""
    assert source.path is not None
    if source.sound is None or has_sound(source.path):
        return sound_of(source.path, source.begin, source.end)
    end = None if source.end == float("inf") else round(source.end * SAMPLE_RATE)
    return read_audio(source.sound)[round(source.begin * SAMPLE_RATE) : end]
