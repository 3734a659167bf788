"""Videos made by replicas of Ray Serve: each has the shared model in memory, and those of the people asked for last.

A request that a replica died with is asked of another one, unless a part of its video has been shown already. What
replicas make carries the invisible mark; credentials are signed by the process that asks, which alone has the key.
"""

import asyncio
import logging
import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, closing, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from fedtalk_ray.actors.ray_errors import DEATHS, first_line
from fedtalk_ray.errors import ClusterError, UserError
from fedtalk_ray.generation.generate import Written
from fedtalk_ray.generation.scene import Stopped
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.released import load_released
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service.making import MARKED, REFERENCE, SOUND, Grows, VideoLost, Wish
from fedtalk_ray.service.own_folder import own_folder
from fedtalk_ray.service.replica import AtWork, Grown, Made, News, Refused, make_elsewhere
from fedtalk_ray.service.speaker import check_identity

TRIES = 3
"""A request that took so many replicas with it is not asked again: it may be what they died of."""

LOOK_S = 0.5
"""Whether a request was taken back is asked so often where nothing is heard of it."""

LONGEST_S = 3600.0
"""Seconds that a replica has for the video that it is at."""

LOST = (*DEATHS, ReplicaUnavailableError, DeploymentUnavailableError)
"""What is raised where a replica died, or there is none and will be none."""

_LOG = logging.getLogger(__name__)

SPEAKER = "speaker"
"""The deployment's name, as the dashboard shows it."""


class SpeakerReplica:
    """One replica. It makes one video at a time."""

    def __init__(self, run: str, most: int) -> None:
        """most: identities whose models stay in memory."""
        self._ending = ExitStack()
        self._run, self._device = RunFolder(Path(run)), pick_device("auto")
        self._shared = load_released(self._run, device=self._device)
        self._folder = self._ending.enter_context(own_folder("fedtalk-speaker-"))
        # Serve takes the next request as soon as one is cancelled, and not when its thread has ended.
        self._turn = asyncio.Lock()

        async def own(version: str) -> TalkingHeadPipeline:
            return await asyncio.to_thread(load_released, self._run, identity_of(version), self._device)

        self._own = serve.multiplexed(own, max_num_models_per_replica=most)

    async def __del__(self) -> None:
        """Serve waits for it: nobody's picture stays behind."""
        async with self._turn:
            self._ending.close()

    async def speak(self, wish: Wish, reference: bytes, sound: bytes, most_seconds: float) -> Any:
        """`service.replica.make_elsewhere`'s news."""
        async with self._turn:
            model = self._shared
            try:
                if version := serve.get_multiplexed_model_id():
                    model = await self._own(version)
            except UserError as error:
                _LOG.warning("a person's adapter cannot be used: %s", error)
                yield Refused(f"the adapter of {identity_of(version)!r} cannot be used")
                return
            making = make_elsewhere(model, wish, reference, sound, most_seconds, self._folder)
            # Left to itself, what is broken off would end after its turn.
            async with aclosing(making):
                async for news in making:
                    yield news

    def frame_size(self) -> int:
        return self._shared.frame_size()


class Replicas:
    """Asks replicas for videos (`service.making.Maker`)."""

    elsewhere = True

    def __init__(self, run: RunFolder, handle: "DeploymentHandle[Any]", at_once: int) -> None:
        """at_once: replicas at most."""
        self._run, self._handle, self.at_once = run, handle, at_once

    def make(
        self, folder: Path, wish: Wish, most_seconds: float, stopped: Callable[[], bool], growing: Grows | None
    ) -> Written:
        given = (folder / REFERENCE).read_bytes(), (folder / SOUND).read_bytes()
        for _ in range(TRIES):
            shown = 0
            try:
                with (
                    open(folder / MARKED, "wb") as video,
                    closing(self._news(stopped, wish, *given, most_seconds)) as told,
                ):
                    for news in told:
                        match news:
                            case Grown(data) if growing is not None:
                                shown += growing.write(data)
                            case Made(data, written):
                                video.write(data)
                                if written is not None:
                                    return written
                            case Refused(why):
                                raise UserError(why)
            except LOST as error:
                _LOG.warning("a replica was lost over a request: %s", first_line(error))
            if shown:
                break
        raise VideoLost("the process that made the video died; ask again")

    def frame_size(self) -> int:
        with ThreadPoolExecutor(1) as aside:
            # Serve does not let itself be waited for in a thread that runs an event loop.
            return int(aside.submit(lambda: self._handle.frame_size.remote().result()).result())

    def forget(self, identity: str) -> None:
        """Nothing is to do: a changed adapter is another version."""

    def _news(
        self, stopped: Callable[[], bool], wish: Wish, reference: bytes, sound: bytes, most_seconds: float
    ) -> Generator[News, None, None]:
        """Raises `Stopped` within `LOOK_S`, whether there is news or not: no replica may be there at all."""
        check_identity(self._run, wish.identity)
        version = "" if wish.identity is None else version_of(self._run, wish.identity)
        asked = self._handle.options(stream=True, multiplexed_model_id=version)
        answer = asked.speak.remote(wish, reference, sound, most_seconds)
        heard: queue.SimpleQueue[News | BaseException | None] = queue.SimpleQueue()

        def listen() -> None:
            try:
                for news in answer:
                    heard.put(news)
                heard.put(None)
            except BaseException as error:  # raised anew by whoever waits
                heard.put(error)

        threading.Thread(target=listen, daemon=True).start()
        try:
            while True:
                try:
                    news = heard.get(timeout=LOOK_S)
                except queue.Empty:
                    news = AtWork()
                if stopped():
                    raise Stopped
                if news is None:
                    return
                if isinstance(news, BaseException):
                    raise news
                yield news
        finally:
            # Whoever listens no more wants no more made.
            answer.cancel()


def version_of(run: RunFolder, identity: str) -> str:
    """What Serve knows somebody's model by: another one once her adapter has changed. Raises `RunError`."""
    adapter = run.own_adapter(identity).stat()
    return f"{identity}@{adapter.st_ino}-{adapter.st_mtime_ns}"


def identity_of(version: str) -> str:
    return version.rpartition("@")[0]


def speaker_deployment(run: RunFolder, least: int, most: int, identities: int, gpus: float) -> serve.Application:
    """Replicas of a run's speaker: `least` always, up to `most` where more are asked at once.

    identities: people whose models each keeps in memory. gpus: of each replica; where it is 0, one CPU.
    """
    options = {"num_cpus": 0 if gpus else 1, "num_gpus": gpus}
    scaled: dict[str, Any] = (
        {"num_replicas": least}
        if least == most
        else {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": 1}}
    )
    deployed = serve.deployment(
        SpeakerReplica,
        name=SPEAKER,
        max_ongoing_requests=1,
        ray_actor_options=options,
        # One that is to go, where fewer are wanted again, ends its video first.
        graceful_shutdown_timeout_s=LONGEST_S,
        graceful_shutdown_wait_loop_s=0.2,
        **scaled,
    )
    return deployed.bind(str(run.path.resolve()), identities)


@contextmanager
def replicas(name: str, run: RunFolder, least: int, most: int, identities: int, gpus: float) -> Iterator[Replicas]:
    """Replicas on the cluster that this process has joined, for as long as the block lasts.

    name: of Serve's application; one that is there already is taken over. Raises `ClusterError`.
    """
    need, kind = (gpus, "GPU") if gpus else (1.0, "CPU")
    free = ray.available_resources().get(kind, 0.0)
    short = f"; they need {least * need:g} {kind}, {free:g} are free" if free < least * need else ""
    print(f"waiting for {least} replicas to start{short}", file=sys.stderr)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_level": "WARNING"}
    try:
        # Nobody reaches them but by this process.
        serve.start(proxy_location="Disabled", logging_config=quiet)
    except (RayServeException, RuntimeError, *DEATHS) as error:
        raise ClusterError(f"Ray Serve did not start: {first_line(error)}") from error
    try:
        try:
            deployed = speaker_deployment(run, least, most, identities, gpus)
            handle = serve.run(deployed, name=name, route_prefix=None, logging_config=quiet)
        except (RayServeException, RuntimeError, *DEATHS) as error:
            raise ClusterError(f"the replicas of {run.path} did not start: {first_line(error)}") from error
        yield Replicas(run, handle, most)
    finally:
        serve.delete(name)
