"""Which clips a corpus holds, and how one of them becomes pictures and sound."""

from dataclasses import dataclass
from pathlib import Path

from fedtalk_ray.data import synthetic
from fedtalk_ray.data.faces import crop_faces
from fedtalk_ray.data.video import Video, read_video
from fedtalk_ray.errors import UserError

CORPORA = ("grid", "folder", "synthetic")
_SUFFIXES = {"grid": {".mpg", ".mp4"}, "folder": {".mp4", ".mov", ".avi", ".mkv", ".webm"}}


class CorpusError(UserError):
    """A corpus is missing or empty, or its name is unknown."""


@dataclass(frozen=True)
class ClipSource:
    """One clip to prepare: a video file, or a clip of the synthetic corpus (`path` is None)."""

    identity: str
    clip: str
    path: str | None = None
    synthetic_identity: int = 0
    synthetic_clip: int = 0
    seed: int = 0


def list_corpus(
    corpus: str, root: str | Path | None, *, identities: int = 8, clips: int = 6, seed: int = 0
) -> list[ClipSource]:
    """All clips of a corpus, those of one identity together. Raises `CorpusError` for what cannot be listed."""
    if corpus not in CORPORA:
        raise CorpusError(f"corpus {corpus!r} is unknown; known: {', '.join(CORPORA)}")
    if corpus == "synthetic":
        return list_synthetic(identities, clips, seed)
    if root is None:
        raise CorpusError(f"corpus {corpus} needs --root, the folder that holds <identity>/<clip>")
    return list_files(corpus, root)


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
            raise CorpusError(f"--only {name}: no such identity; the corpus has {', '.join(known)}")
    return [source for source in sources if source.identity in names]


def load_clip(source: ClipSource, size: int) -> Video:
    """The clip as aligned face crops uint8 [T, size, size, 3] and its sound.

    Raises `data.video.VideoError` or `data.faces.NoFaceError` when the clip cannot be used.
    """
    if source.path is None:
        return synthetic.render_clip(
            source.synthetic_identity, source.synthetic_clip, seed=source.seed, size=size
        ).video
    video = read_video(source.path)
    return Video(crop_faces(video.frames, size), video.audio)
