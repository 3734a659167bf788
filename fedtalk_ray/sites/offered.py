"""What a coordinator offers, read and held against the policy before anything of it is fetched, prepared or loaded."""

import json
from dataclasses import dataclass
from typing import Any

from fedtalk_ray.config import parse_config
from fedtalk_ray.coordinator.offer import run_name
from fedtalk_ray.coordinator.served import safe_name
from fedtalk_ray.errors import ConfigError
from fedtalk_ray.media.identity_embedding import NO_IDENTITY
from fedtalk_ray.media.speech import LOG_MEL, PRETRAINED
from fedtalk_ray.messages import Offer, Part
from fedtalk_ray.model.embedded import EMBEDDED
from fedtalk_ray.privacy.keys import digest
from fedtalk_ray.privacy.wire import encode
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.sites.folder import SiteFolder
from fedtalk_ray.sites.policy import Policy, configuration_name

BUILT_IN = {
    "autoencoder": ("lower-face", "patch"),
    "speech": (LOG_MEL, PRETRAINED),
    "identity": (NO_IDENTITY, "dlib"),
}
"""What clips are prepared by unless the site's owner says otherwise: a coordinator that could name any folder or hub id
would have it loaded."""

MOST_FILES = 1_000
"""Of a model."""


@dataclass(frozen=True)
class OfferedRun:
    """name: the run's. config: its settings, with this site's own places and agreement. conditions: how clips are
    prepared. start: the model's files. model: what it is called in policies. refused: why it is not taken part in."""

    name: str
    config: TrainConfig
    conditions: dict[str, Any]
    start: tuple[Part, ...]
    model: str
    refused: str

    def line(self) -> str:
        """What its owner may want to write into the policy."""
        return f"run {self.name[:8]}: configuration {configuration_name(self.config)}, model {self.model}"


def read_offer(offer: Offer, folder: SiteFolder, policy: Policy) -> OfferedRun:
    """Raises `ConfigError` for an offer that cannot be one."""
    name, run = run_name(offer), folder.run(run_name(offer))
    try:
        tree, conditions = json.loads(offer.config), json.loads(offer.conditions)
        if not isinstance(tree, dict) or not isinstance(conditions, dict):
            raise ValueError("no key: value pairs")
        size = int(conditions["frame_size"])
        conditions = {key: str(conditions[key]) for key in (*BUILT_IN, "autoencoder_fingerprint")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"the coordinator's offer cannot be read ({error})") from error
    own = {"run": str(run.path), "shards": str(folder.shards), "address": "local", "debug": False}
    agreement = policy.agreement(folder.ledgers).model_dump()
    config = parse_config(tree | own | {"agreement": agreement}, "the coordinator's offer")
    model = digest(*(encode(part) for part in offer.start)).hex()[:32] if offer.start else str(config.pretrained)
    refused = policy.refusal(config, model) or _refusal(offer, folder, policy, config.pretrained, conditions)
    if offer.start:
        config = config.model_copy(update={"pretrained": str(folder.models / model)})
    return OfferedRun(name, config, conditions | {"frame_size": size}, offer.start, model, refused)


def _refusal(
    offer: Offer, folder: SiteFolder, policy: Policy, pretrained: str | None, conditions: dict[str, str]
) -> str:
    """Why what an offer names is not fetched, loaded or taken part in; empty where it is."""
    for what, known in BUILT_IN.items():
        if conditions[what] not in known and not (what == "speech" and folder.speech):
            told = "; the owner may say where it is (--speech)" if what == "speech" else ""
            return (
                f"clips are to be prepared by the {what} {conditions[what]!r}, and sites know {', '.join(known)}{told}"
            )
    if not offer.start and pretrained not in (None, EMBEDDED):
        return "a model is named and not given"
    size = sum(part.size for part in offer.start)
    if size > policy.most_download_mb << 20 or len(offer.start) > MOST_FILES:
        return (
            f"the model is {size >> 20} MiB in {len(offer.start)} files, this site takes {policy.most_download_mb} MiB"
        )
    for part in offer.start:
        safe_name(part.name)
    others = folder.rounds_spent().keys() - {run_name(offer)}
    if policy.runs is not None and len(others) >= policy.runs:
        return f"it is another run, and this site agreed to {policy.runs}"
    return ""
