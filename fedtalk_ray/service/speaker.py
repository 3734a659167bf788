"""The models of one run that are in memory: the shared one, and those with people's own adapters that were asked last.

One is asked at a time: they share the processor, and a generation is not meant to run beside another of itself.
"""

from collections import OrderedDict
from pathlib import Path

from fedtalk_ray.errors import UserError
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.released import load_released, open_model


class UnknownIdentity(UserError):
    """Nobody of that name has an adapter in the run."""


class Speaker:
    """run: a run's folder or a pretrained pipeline's. most: identities whose models stay in memory."""

    def __init__(self, run: str | Path, most: int = 3, device: str = "auto") -> None:
        """Loads the shared model. Raises `RunError` where there is none."""
        self.run, self._device, self._most = open_model(run), pick_device(device), most
        self._shared = load_released(self.run, device=self._device)
        self._own: OrderedDict[str, TalkingHeadPipeline] = OrderedDict()

    def identities(self) -> list[str]:
        """Who has an adapter of her own, in order."""
        return [name for name in self.run.clients() if self.run.client(name).adapters()]

    def check(self, identity: str | None) -> None:
        """Raises `UnknownIdentity` for somebody who has none; None is nobody in particular."""
        if identity is not None and identity not in self.identities():
            raise UnknownIdentity(f"identity {identity!r} has no adapter here")

    def model(self, identity: str | None = None) -> TalkingHeadPipeline:
        """The shared model, or somebody's own. Raises `UnknownIdentity`."""
        self.check(identity)
        if identity is None:
            return self._shared
        if identity not in self._own:
            self._own[identity] = load_released(self.run, identity, self._device)
            if len(self._own) > self._most:
                self._own.popitem(last=False)
        self._own.move_to_end(identity)
        return self._own[identity]

    def forget(self, identity: str) -> None:
        """Reads somebody's adapter anew when it is asked for next: it has changed, or is gone."""
        self._own.pop(identity, None)
