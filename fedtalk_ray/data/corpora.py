"""Which clips a corpus holds, and how one of them becomes pictures and sound."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from fedtalk_ray.data import synthetic
from fedtalk_ray.data.corpus_excerpt import read_clip
from fedtalk_ray.data.corpus_hdtf import list_hdtf
from fedtalk_ray.data.corpus_layouts import list_crema_d, list_lrs3, list_ravdess, list_voxceleb2
from fedtalk_ray.data.corpus_source import ClipSource, CorpusError
from fedtalk_ray.data.faces import crop_faces
from fedtalk_ray.data.video import Video

__all__ = [
    "CORPORA", "ClipSource", "CorpusError", "at_most", "list_corpus", "list_files", "list_synthetic", "load_clip",
    "named", "only_identities", "own_test_set",
]  # fmt: skip

_LAYOUTS: dict[str, Callable[[Path], list[ClipSource]]] = {
    "ravdess": list_ravdess,
    "crema-d": list_crema_d,
    "lrs3": list_lrs3,
    "voxceleb2": list_voxceleb2,
    "hdtf": list_hdtf,
}
CORPORA = ("grid", "folder", "synthetic", *_LAYOUTS)
_ROOTS = {
    "ravdess": "Actor_01, Actor_02, ...",
    "crema-d": "VideoFlash",
    "lrs3": "pretrain, trainval and test",
    "voxceleb2": "dev and test",
    "hdtf": "the clips <video>_<n>.mp4",
}
_SUFFIXES = {"grid": {".mpg", ".mp4"}, "folder": {".mp4", ".mov", ".avi", ".mkv", ".webm"}}
_NAMES_SHOWN = 20


def list_corpus(
    corpus: str, root: str | Path | None, *, identities: int = 8, clips: int = 6, seed: int = 0
) -> list[ClipSource]:
    """All clips of a corpus, those of one identity together. Raises `CorpusError` for what cannot be listed."""
    if corpus not in CORPORA:
        raise CorpusError(f"corpus {corpus!r} is unknown; known: {', '.join(CORPORA)}")
    if corpus == "synthetic":
        return list_synthetic(identities, clips, seed)
    if root is None:
        holds = _ROOTS.get(corpus, "<identity>/<clip>")
        raise CorpusError(f"corpus {corpus} needs --root, the folder that holds {holds}")
    if corpus not in _LAYOUTS:
        return list_files(corpus, root)
    if not Path(root).is_dir():
        raise CorpusError(f"corpus folder {root} does not exist")
    return _LAYOUTS[corpus](Path(root))


def list_files(corpus: str, root: str | Path) -> list[ClipSource]:
    """Clips of `<root>/<identity>/<clip>.<suffix>`, sorted. GRID names identities s1, s2, ...; a folder, as it likes.

    Raises `CorpusError` when the folder is missing or holds no such file.
    """
    root, suffixes = Path(root), _SUFFIXES[corpus]
    if not root.is_dir():
        raise CorpusError(f"corpus folder {root} does not exist")
    files = sorted(path for path in root.glob("[!.]*/[!.]*") if path.suffix.lower() in suffixes and path.is_file())
    if not files:
        raise CorpusError(f"corpus folder {root} holds no <identity>/<clip>{'|'.join(sorted(suffixes))}")
    return [ClipSource(path.parent.name, path.stem, str(path)) for path in files]


def list_synthetic(identities: int, clips: int, seed: int) -> list[ClipSource]:
    """`clips` clips of each of `identities` drawn people."""
    if identities < 1 or clips < 1:
        raise CorpusError(f"--identities {identities} --clips {clips}: both must be at least 1")
    return [
        ClipSource(synthetic.identity_name(who), synthetic.clip_name(clip), None, who, clip, seed)
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
    """The identities of the corpus's own test set, None where it defines none.

    Raises `CorpusError` when all are: nobody would be left to train on.
    """
    held_out = sorted({source.identity for source in sources if source.held_out})
    if held_out and all(source.held_out for source in sources):
        raise CorpusError(
            f"all {len(held_out)} identities are of the corpus's own test set, so none is left to train on: add its "
            "other sets, or say with --unseen who is kept for testing (0: nobody)"
        )
    return held_out or None


def named(names: list[str]) -> str:
    """The names by commas, the first of them where they are many."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown}, ... ({len(names)} in all)"


def load_clip(source: ClipSource, size: int) -> Video:
    """The clip as aligned face crops uint8 [T, size, size, 3] and its sound.

    Raises `data.video.VideoError` or `data.faces.NoFaceError` when the clip cannot be used.
    """
    if source.path is None:
        return synthetic.render_clip(
            source.synthetic_identity, source.synthetic_clip, seed=source.seed, size=size
        ).video
    video = read_clip(source)
    return Video(crop_faces(video.frames, size), video.audio)
