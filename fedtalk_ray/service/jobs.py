"""What is asked of the service, each in its turn: a queue with a bound, whose jobs can be taken back.

A result lies in a folder of its job until whoever asked takes the job back, or it is forgotten.
"""

import asyncio
import logging
import secrets
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from fedtalk_ray.errors import UserError
from fedtalk_ray.generation.scene import Stopped
from fedtalk_ray.service.growing import GrowingFile

LOOK_S = 60.0
"""So often is looked for jobs that have been kept long enough."""

_LOG = logging.getLogger(__name__)

Work = Callable[[Path, Callable[[], bool]], Any]
"""Makes a job's result in a folder; asks now and then whether it is to stop."""


class QueueFull(Exception):
    """As many jobs wait as may. Its text says so to whoever asked."""


@dataclass
class Job:
    """folder: of its input and its result. result: what its work returned, or raised. growing: its video while it is
    made, where somebody wants to watch."""

    name: str
    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    result: "Future[Any]" = field(default_factory=Future)
    ended: float | None = None
    growing: GrowingFile | None = None

    @property
    def state(self) -> str:
        """waiting, running, done, failed or cancelled."""
        if self.stop.is_set() or self.result.cancelled():
            return "cancelled"
        if self.result.done():
            return "failed" if self.result.exception() else "done"
        return "running" if self.result.running() else "waiting"

    @property
    def error(self) -> BaseException | None:
        """What its work raised, `Stopped` where it was taken back before it began. Of a job that has ended."""
        return Stopped() if self.result.cancelled() else self.result.exception()


class JobQueue:
    """`at_once` jobs run, `most` at most wait. Of ended jobs the last `kept` are kept, for `keep_s` seconds."""

    def __init__(
        self,
        folder: Path,
        most: int,
        at_once: int = 1,
        apart: bool = False,
        keep_s: float = 3600.0,
        kept: int = 32,
    ) -> None:
        """folder: in which each job gets its own. apart: whether those that run alone do so beside the others."""
        self._folder, self._most, self._keep, self._kept = folder, most + at_once, keep_s, kept
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(at_once, "generate")
        self._alone = ThreadPoolExecutor(1, "train") if apart else self._worker
        self._closed = threading.Event()
        threading.Thread(target=self._forget_in_time, name="forget", daemon=True).start()

    def new(self) -> Job:
        """A job with a folder, which `begin` puts in the queue. Raises `QueueFull`, before anything is written."""
        with self._lock:
            self._forget_old()
            if sum(job.ended is None for job in list(self._jobs.values())) >= self._most:
                raise QueueFull("as many wait as may; ask again later")
            job = Job(name := secrets.token_urlsafe(12), self._folder / name)
            self._jobs[name] = job
        try:
            job.folder.mkdir(parents=True)
        except OSError:
            self._forget(job)
            raise
        return job

    def begin(self, job: Job, work: Work, alone: bool = False) -> None:
        """Puts it at the queue's end. alone: never beside another such job."""
        worker = self._alone if alone else self._worker
        job.result = worker.submit(_done, work, job.folder, job.stop.is_set)
        job.result.add_done_callback(lambda _: self._note_end(job))

    def get(self, name: str) -> Job | None:
        """None for one that was taken back or forgotten, too."""
        with self._lock:
            self._forget_old()
        job = self._jobs.get(name)
        return None if job is None or job.stop.is_set() else job

    def drop(self, job: Job) -> None:
        """Takes a job back, whatever it is at, and everything of it off the disk: of one that runs when it has stopped,
        and until then it counts."""
        job.stop.set()
        if job.result.cancel() or job.result.done():
            self._forget(job)

    def close(self) -> None:
        """Takes all jobs back, and waits for those that run."""
        self._closed.set()
        for job in list(self._jobs.values()):
            self.drop(job)
        for worker in (self._worker, self._alone):
            worker.shutdown(cancel_futures=True)

    def _note_end(self, job: Job) -> None:
        job.ended = monotonic()
        if job.growing is not None:
            job.growing.close()
        if job.stop.is_set():
            self._forget(job)

    def _forget(self, job: Job) -> None:
        if job.growing is not None:
            job.growing.close()
        self._jobs.pop(job.name, None)
        shutil.rmtree(job.folder, ignore_errors=True)

    def _forget_in_time(self) -> None:
        """Whether anybody asks for anything or not."""
        while not self._closed.wait(min(LOOK_S, self._keep)):
            with self._lock:
                self._forget_old()

    def _forget_old(self) -> None:
        ended = sorted((job.ended, name, job) for name, job in list(self._jobs.items()) if job.ended is not None)
        for number, (when, _, job) in enumerate(ended):
            if monotonic() - when > self._keep or number < len(ended) - self._kept:
                self._forget(job)


async def begun(queue: JobQueue, begin: Callable[[], Job]) -> Job:
    """The job that `begin` puts in the queue, in a thread of its own. Where whoever asked is gone meanwhile it is
    nobody's, and taken back."""
    taking = asyncio.ensure_future(asyncio.to_thread(begin))

    def given_up(taken: "asyncio.Future[Job]") -> None:
        if not taken.cancelled() and not taken.exception():
            queue.drop(taken.result())

    try:
        return await asyncio.shield(taking)
    except asyncio.CancelledError:
        taking.add_done_callback(given_up)
        raise


def _done(work: Work, folder: Path, stopped: Callable[[], bool]) -> Any:
    """What a job is kept with must not keep all that it worked on: errors lose where they came from."""
    try:
        return work(folder, stopped)
    except Exception as error:
        if not isinstance(error, UserError | Stopped):
            _LOG.exception("a job failed")
        error.__cause__ = error.__context__ = None
        raise error.with_traceback(None) from None
