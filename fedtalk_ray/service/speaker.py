"""The models of one run that are in memory: the shared one, and those with people's own adapters that were asked last.

One is asked at a time: they share the processor, and a generation is not meant to run beside another of itself.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from fedtalk_ray.errors import UserError
from fedtalk_ray.generation.generate import Written
from fedtalk_ray.media.faces import NoFaceError
from fedtalk_ray.media.lips import face_landmarks
from fedtalk_ray.media.portrait import locate_face
from fedtalk_ray.media.video import SAMPLE_RATE
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.released import load_released
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service.making import Grows, Wish, make_video


class UnknownIdentity(UserError):
    """Nobody of that name has an adapter in the run."""


def identities(run: RunFolder) -> list[str]:
    """Who has an adapter of her own, in order."""
    return [name for name in run.clients() if run.client(name).adapters()]


def check_identity(run: RunFolder, identity: str | None) -> None:
    """Raises `UnknownIdentity` for somebody who has none; None is nobody in particular."""
    if identity is not None and identity not in identities(run):
        raise UnknownIdentity(f"identity {identity!r} has no adapter here")


class Speaker:
    """Makes videos in this process (`making.Maker`)."""

    at_once, elsewhere = 1, False

    def __init__(self, run: RunFolder, most: int = 3, device: str = "auto") -> None:
        """Loads the shared model. most: identities whose models stay in memory."""
        self._run, self._device, self._most = run, pick_device(device), most
        self._shared = load_released(run, device=self._device)
        self._own: OrderedDict[str, TalkingHeadPipeline] = OrderedDict()

    def model(self, identity: str | None = None) -> TalkingHeadPipeline:
        """The shared model, or somebody's own. Raises `UnknownIdentity`."""
        check_identity(self._run, identity)
        if identity is None:
            return self._shared
        if identity not in self._own:
            self._own[identity] = load_released(self._run, identity, self._device)
            if len(self._own) > self._most:
                self._own.popitem(last=False)
        self._own.move_to_end(identity)
        return self._own[identity]

    def warm_up(self) -> None:
        """Loads what the first request would wait for: what finds faces and lips, and the network's first steps."""
        size = self.frame_size()
        blank = np.full((size, size, 3), 128, np.uint8)
        with suppress(NoFaceError):
            locate_face(blank)
        face_landmarks(blank[None])
        self._shared(blank, np.zeros(SAMPLE_RATE // 5, np.float32))

    def make(
        self, folder: Path, wish: Wish, most_seconds: float, stopped: Callable[[], bool], growing: Grows | None
    ) -> Written:
        return make_video(self.model(wish.identity), folder, wish, most_seconds, stopped, growing)

    def frame_size(self) -> int:
        return self._shared.frame_size()

    def forget(self, identity: str) -> None:
        self._own.pop(identity, None)
