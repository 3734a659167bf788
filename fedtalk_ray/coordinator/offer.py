"""What coordinator and sites agree on beside the messages: how clips are prepared, what a released model is.

Clips of all sites are prepared as the coordinator's own shards, of unseen people, were.
"""

from collections.abc import Mapping
from typing import Any

from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.messages import Offer, Part
from fedtalk_ray.privacy.keys import digest
from fedtalk_ray.privacy.wire import encode
from fedtalk_ray.shards.format import Manifest

LONGEST_REFUSAL = 200
"""Characters in which a site says why it takes no part."""

RELEASED = ("pipeline", "adapters")
"""What of a run's folder is its model."""

_CONDITIONS = ("frame_size", "autoencoder_fingerprint", "speech", "identity")
_OPTIONS = {
    "frame_size": "--size",
    "autoencoder_fingerprint": "--autoencoder",
    "speech": "--speech",
    "identity": "--identity",
}


def run_name(offer: Offer) -> str:
    """A run's name: of the model's files and of how clips are prepared, which nothing else in a plan says. Every
    signature covers it, so that sites with different offers are in no sum together."""
    parts = [encode(part) for part in offer.start]
    return digest(b"fedtalk run/1", offer.nonce, offer.conditions.encode(), *parts).hex()[:32]


def model_parts(parts: tuple[Part, ...], most_mb: int) -> tuple[Part, ...]:
    """The files of a released model. most_mb: MiB of all of them at most. Raises `EnrolmentError` for what is none."""
    if not parts:
        raise EnrolmentError("the coordinator releases a model without a file")
    if sum(part.size for part in parts) > most_mb << 20:
        raise EnrolmentError(f"the released model is larger than {most_mb} MiB")
    for part in parts:
        if part.name.split("/")[0] not in RELEASED:
            raise EnrolmentError(f"the coordinator releases {part.name!r}, which is no part of a model")
    return parts


def conditions_of(manifest: Manifest) -> dict[str, Any]:
    """What must be the same in all shards, and by which name the autoencoder is known."""
    return {name: getattr(manifest, name) for name in (*_CONDITIONS, "autoencoder")}


def difference(own: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first condition that is not kept, in words; empty where all are."""
    for name in _CONDITIONS:
        if own[name] != asked.get(name):
            return f"{_OPTIONS[name]} is {own[name]!r}, and the run needs {asked.get(name)!r}"
    return ""
