"""What is asked of the service, whoever asks: a face, a sound and how they are to meet become a job, and a video."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedtalk_ray.errors import UserError
from fedtalk_ray.generation.generate import Written, speak_into
from fedtalk_ray.generation.scene import Stopped
from fedtalk_ray.marking.certificates import Signing
from fedtalk_ray.media.video import SAMPLE_RATE, VideoError, read_audio
from fedtalk_ray.model.sampling import USUAL, Sampling
from fedtalk_ray.service.growing import GrowingFile
from fedtalk_ray.service.jobs import Job, JobQueue
from fedtalk_ray.service.speaker import Speaker

REFERENCE, SOUND, VIDEO, GROWING = "reference", "sound", "video.mp4", "growing.mp4"
"""What lies in a job's folder."""


NO_ROOM = "there is no room for what was given"


class NoRoom(UserError):
    """What was given does not fit on the disk."""


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


class Speaking:
    """The speaker and the queue before it."""

    def __init__(self, speaker: Speaker, folder: Path, waiting: int = 8, signing: Signing | None = None) -> None:
        """folder: of jobs. waiting: jobs that wait at most. signing: as `speak_into` takes it."""
        self.speaker, self.queue = speaker, JobQueue(folder, waiting)
        self._signing = signing

    def begin(self, wish: Wish, reference: BinaryIO, sound: BinaryIO, most_seconds: float) -> Job:
        """A job in the queue. most_seconds: of sound. Raises `UnknownIdentity`, `QueueFull` and `NoRoom`."""
        self.speaker.check(wish.identity)
        try:
            job = self.queue.new()
        except OSError as error:
            raise NoRoom(NO_ROOM) from error
        try:
            for name, file in ((REFERENCE, reference), (SOUND, sound)):
                with open(job.folder / name, "wb") as copy:
                    shutil.copyfileobj(file, copy)
            if wish.stream:
                job.growing = GrowingFile(job.folder / GROWING)
        except BaseException as error:
            self.queue.drop(job)
            if isinstance(error, OSError):
                raise NoRoom(NO_ROOM) from error
            raise
        made = partial(
            work,
            speaker=self.speaker,
            wish=wish,
            most_seconds=most_seconds,
            signing=self._signing,
            growing=job.growing,
        )
        self.queue.begin(job, made)
        return job


def work(
    folder: Path,
    stopped: Callable[[], bool],
    speaker: Speaker,
    wish: Wish,
    most_seconds: float,
    signing: Signing | None,
    growing: GrowingFile | None,
) -> Written:
    """Makes `folder`'s video; what was given goes. Raises `UserError`s."""
    try:
        sound = sound_in(folder, most_seconds)
        return speak_into(
            speaker.model(wish.identity),
            str(folder / REFERENCE),
            sound,
            folder / VIDEO,
            crop=wish.crop,
            face=wish.face,
            hold_still=wish.hold_still,
            seed=wish.seed,
            sampling=wish.sampling,
            signing=signing,
            stopped=stopped,
            growing=growing,  # type: ignore[arg-type]  # `write` is all that is asked of it
        )
    finally:
        for name in (REFERENCE, SOUND):
            (folder / name).unlink(missing_ok=True)


def sound_in(folder: Path, most_seconds: float) -> np.ndarray:
    """What is to be said, float32 [N]. Raises `UserError`."""
    try:
        sound = read_audio(folder / SOUND, most_seconds + 1)
    except VideoError as error:
        raise UserError(f"{SOUND}: {str(error).removeprefix(f'{folder / SOUND}: ')}") from error
    if len(sound) > most_seconds * SAMPLE_RATE:
        raise UserError(f"{SOUND}: is longer than {most_seconds:g} s")
    return sound


def why_not(error: BaseException | None, job: Job) -> str | None:
    """What whoever asked is told of a job that failed; None for an error of the service's own."""
    if isinstance(error, UserError):
        # Without where its files lie here.
        text = str(error).replace(f"{job.folder}/", "")
        return text.replace(f"reference {REFERENCE}", REFERENCE)
    if isinstance(error, Stopped):
        return "the job was taken back"
    return None
