"""A site's own clips, prepared as the run asks: face crops, sound features, latents. They stay in SITE/shards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedtalk_ray.corpora.layouts.folder import SUFFIXES
from fedtalk_ray.corpora.source import ClipSource, CorpusError


def clips_in(folder: Path, name: str) -> list[ClipSource]:
    """The clips in a folder, and in the folders inside it, each of which is somebody. name: whose those are that lie in
    it directly. Raises `CorpusError` for a folder without any."""
    if not folder.is_dir():
        raise CorpusError(f"--clips {folder} is no folder")
    found = [*folder.glob("[!.]*"), *folder.glob("[!.]*/[!.]*")]
    files = sorted(path for path in found if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise CorpusError(f"--clips {folder} holds no clip ({', '.join(SUFFIXES)})")
    return [ClipSource(name if path.parent == folder else path.parent.name, path.stem, str(path)) for path in files]


def prepare_clips(sources: list[ClipSource], out: Path, conditions: Mapping[str, Any], speech: str | None) -> int:
    """Prepares a site's clips; how many. conditions: what the run asks for (`coordinator.offer`). speech: where this
    machine has the very network that hears for the run, else where the coordinator has it. Needs a connected Ray.

    Raises `CorpusError` where more than half cannot be used.
    """
    from fedtalk_ray.shards.prepare import prepare

    manifest = prepare(
        "folder",
        sources,
        out,
        size=int(conditions["frame_size"]),
        autoencoder=str(conditions["autoencoder"]),
        speech=speech or str(conditions["speech"]),
        identity=str(conditions["identity"]),
        unseen=[],
        overwrite=True,
        speech_known_as=str(conditions["speech"]),
    )
    return sum(len(entries) for entries in manifest.identities.values())
