"""How a job's video is made in its folder, by whichever process does it: a face, a sound and a wish in, the marked
video out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from fedtalk_ray.errors import UserError
from fedtalk_ray.generation.generate import Written, speak_into
from fedtalk_ray.marking.marked_video import write_marked
from fedtalk_ray.media.video import SAMPLE_RATE, VideoError, read_audio
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.sampling import USUAL, Sampling

REFERENCE, SOUND, MARKED = "reference", "sound", "marked.mp4"
"""What lies in the folder: what was given, and the video with the invisible mark, before it is signed."""


class VideoLost(UserError):
    """Who made a video died over it, and nobody else could make it."""


@dataclass(frozen=True)
class Wish:
    """How a face is to speak, as `speak_into` takes it. identity: whose adapter; None for the shared model. stream:
    whether its frames are to be seen as they come."""

    identity: str | None = None
    crop: bool = False
    hold_still: bool = False
    face: int | None = None
    seed: int = 0
    sampling: Sampling = USUAL
    stream: bool = False


class Grows(Protocol):
    """Takes a video's bytes as they come."""

    def write(self, data: bytes, /) -> int: ...


class Maker(Protocol):
    """Makes the videos of a run's people. at_once: how many of them. elsewhere: not in this process."""

    at_once: int
    elsewhere: bool

    def make(
        self, folder: Path, wish: Wish, most_seconds: float, stopped: Callable[[], bool], growing: Grows | None
    ) -> Written:
        """Makes the folder's `MARKED` of its `REFERENCE` and `SOUND`.

        most_seconds: of sound. stopped: asked before every block of frames, `Stopped` is raised where it says so.
        growing: takes the video, coded for it, as frames come. Raises `UserError`s.
        """
        ...

    def frame_size(self) -> int:
        """Side in pixels of the faces that the models take and make."""
        ...

    def forget(self, identity: str) -> None:
        """Reads somebody's adapter anew when it is asked for next: it has changed, or is gone."""
        ...


def make_video(
    model: TalkingHeadPipeline,
    folder: Path,
    wish: Wish,
    most_seconds: float,
    stopped: Callable[[], bool],
    growing: Grows | None,
) -> Written:
    """As `Maker.make`, with a model that is there."""
    return speak_into(
        model,
        str(folder / REFERENCE),
        sound_in(folder, most_seconds),
        folder / MARKED,
        crop=wish.crop,
        face=wish.face,
        hold_still=wish.hold_still,
        seed=wish.seed,
        sampling=wish.sampling,
        # `write` is all that is asked of it.
        write=partial(write_marked, signing=None, growing=growing),  # type: ignore[arg-type]
        stopped=stopped,
    )


def sound_in(folder: Path, most_seconds: float) -> np.ndarray:
    """What is to be said, float32 [N]. Raises `UserError`."""
    try:
        sound = read_audio(folder / SOUND, most_seconds + 1)
    except VideoError as error:
        raise UserError(told(error, folder)) from error
    if len(sound) > most_seconds * SAMPLE_RATE:
        raise UserError(f"{SOUND}: is longer than {most_seconds:g} s")
    return sound


def told(error: Exception, folder: Path) -> str:
    """What whoever asked is told, without where its files lay."""
    return str(error).replace(f"{folder}/", "").replace(f"reference {REFERENCE}", REFERENCE)
