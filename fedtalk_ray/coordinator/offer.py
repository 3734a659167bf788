"""How the clips of all sites are to be prepared: as the coordinator's own shards, of unseen people, were."""

from collections.abc import Mapping
from typing import Any

from fedtalk_ray.shards.format import Manifest

_CONDITIONS = ("frame_size", "autoencoder_fingerprint", "speech", "identity")
_OPTIONS = {
    "frame_size": "--size",
    "autoencoder_fingerprint": "--autoencoder",
    "speech": "--speech",
    "identity": "--identity",
}


def conditions_of(manifest: Manifest) -> dict[str, Any]:
    """What must be the same in all shards, and by which name the autoencoder is known."""
    return {name: getattr(manifest, name) for name in (*_CONDITIONS, "autoencoder")}


def difference(own: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first condition that is not kept, in words; empty where all are."""
    for name in _CONDITIONS:
        if own[name] != asked.get(name):
            return f"{_OPTIONS[name]} is {own[name]!r}, and the run needs {asked.get(name)!r}"
    return ""
