"""What is asked of the service, whoever asks: a face, a sound and how they are to meet become a job, and a video."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fedtalk_ray.errors import UserError
from fedtalk_ray.generation.generate import Written
from fedtalk_ray.generation.scene import Stopped
from fedtalk_ray.marking.certificates import Signing
from fedtalk_ray.marking.credentials import sign
from fedtalk_ray.outputs import new_file
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service.growing import GrowingFile
from fedtalk_ray.service.jobs import Job, JobQueue, Work
from fedtalk_ray.service.making import MARKED, REFERENCE, SOUND, Maker, Wish, told
from fedtalk_ray.service.speaker import check_identity, identities

VIDEO, GROWING = "video.mp4", "growing.mp4"
"""What lies in a job's folder: the signed video, and the one that was watched while it was made."""

NO_ROOM = "there is no room for what was given"


class NoRoom(UserError):
    """What was given does not fit on the disk."""


class Speaking:
    """A run's people, the queue of what is asked of them, and who makes it."""

    def __init__(self, run: RunFolder, maker: Maker, folder: Path, waiting: int, signing: Signing) -> None:
        """folder: of jobs. waiting: jobs that wait at most. signing: of the credentials."""
        self.run, self.maker = run, maker
        self.queue = JobQueue(folder, waiting, maker.at_once, maker.elsewhere)
        self._signing = signing
        self.shown: dict[str, list[Job]] = {}
        """Of people who were personalised here, the jobs whose videos show them: they go with them."""

    def identities(self) -> list[str]:
        """Who has an adapter of her own, in order."""
        return identities(self.run)

    def begin(self, wish: Wish, reference: BinaryIO, sound: BinaryIO, most_seconds: float) -> Job:
        """A job in the queue. most_seconds: of sound. Raises `UnknownIdentity`, `QueueFull` and `NoRoom`."""
        check_identity(self.run, wish.identity)
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
            maker=self.maker,
            wish=wish,
            most_seconds=most_seconds,
            signing=self._signing,
            growing=job.growing,
        )
        self.queue.begin(job, made)
        return job

    def begin_training(self, train: Work) -> Job:
        """A job of this process itself, one at a time: in its turn with the videos where this process makes those too,
        else beside them. Raises `QueueFull`."""
        job = self.queue.new()
        self.queue.begin(job, train, alone=True)
        return job


def work(
    folder: Path,
    stopped: Callable[[], bool],
    maker: Maker,
    wish: Wish,
    most_seconds: float,
    signing: Signing,
    growing: GrowingFile | None,
) -> Written:
    """Makes `folder`'s video, with credentials; what was given goes. Raises `UserError`s."""
    try:
        written = maker.make(folder, wish, most_seconds, stopped, growing)
        with new_file(folder / VIDEO) as signed:
            sign(folder / MARKED, signed, signing, written.kind, written.mark)
        return written
    finally:
        for name in (REFERENCE, SOUND, MARKED):
            (folder / name).unlink(missing_ok=True)


def why_not(error: BaseException | None, job: Job) -> str | None:
    """What whoever asked is told of a job that failed; None for an error of the service's own."""
    if isinstance(error, UserError):
        return told(error, job.folder)
    if isinstance(error, Stopped):
        return "the job was taken back"
    return None
