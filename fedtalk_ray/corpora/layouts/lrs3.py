"""LRS3: `pretrain|trainval|test/<video>/NNNNN.mp4`."""

from pathlib import Path

from fedtalk_ray.corpora.source import ClipSource, by_identity, files_below, nothing_found

ROOT_HOLDS = "pretrain, trainval and test"
LRS3_SETS = ("test", "trainval", "pretrain")


def list_clips(root: Path) -> list[ClipSource]:
    """`pretrain|trainval|test/<video>/NNNNN.mp4`; the test set is held out. Raises `CorpusError`.

    An identity's clips come from one set: the sentences of trainval are cut from pretrain's clips, so both together
    would put what is trained on among what is held out.
    """
    patterns = tuple(f"{name}/[!.]*/[0-9]*.mp4" for name in LRS3_SETS)
    chosen: dict[str, str] = {}
    sources = []
    for name, pattern in zip(LRS3_SETS, patterns, strict=True):
        for path in files_below(root, (pattern,)):
            if chosen.setdefault(path.parent.name, name) == name:
                sources.append(ClipSource(path.parent.name, path.stem, str(path), held_out=name == "test"))
    if not sources:
        raise nothing_found("lrs3", root, "pretrain|trainval|test/<video>/NNNNN.mp4", patterns)
    return by_identity(sources)
