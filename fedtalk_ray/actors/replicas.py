"""Videos made by replicas of Ray Serve: each has the shared model in memory, and those of the people asked for last.

A request that a replica died with is asked of another one, unless a part of its video has been shown already. What
replicas make carries the invisible mark; credentials are signed by the process that asks, which alone has the key.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
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
from fedtalk_ray.service.replica import Grown, Made, News, Refused, make_elsewhere
from fedtalk_ray.service.speaker import check_identity

TRIES = 3
"""A request that took so many replicas with it is not asked again: it may be what they died of."""

SPEAKER = "speaker"
"""The deployment's name, as the dashboard shows it."""


class SpeakerReplica:
    """One replica. It makes one video at a time."""

    def __init__(self, run: str, most: int) -> None:
        """most: identities whose models stay in memory."""
        self._run, self._device = RunFolder(Path(run)), pick_device("auto")
        self._shared = load_released(self._run, device=self._device)

        async def own(version: str) -> TalkingHeadPipeline:
            return load_released(self._run, identity_of(version), self._device)

        self._own = serve.multiplexed(own, max_num_models_per_replica=most)

    async def speak(self, wish: Wish, reference: bytes, sound: bytes, most_seconds: float) -> Any:
        """`service.replica.make_elsewhere`'s news."""
        model = self._shared
        try:
            if version := serve.get_multiplexed_model_id():
                model = await self._own(version)
        except UserError:
            yield Refused(f"identity {identity_of(version)!r} has no adapter here")
            return
        async for news in make_elsewhere(model, wish, reference, sound, most_seconds):
            yield news

    def frame_size(self) -> int:
        return self._shared.frame_size()


class Replicas:
    """Asks replicas for videos (`service.making.Maker`)."""

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
                with open(folder / MARKED, "wb") as video:
                    for news in self._news(wish, *given, most_seconds):
                        if stopped():
                            raise Stopped
                        match news:
                            case Grown(data) if growing is not None:
                                shown += growing.write(data)
                            case Made(data, written):
                                video.write(data)
                                if written is not None:
                                    return written
                            case Refused(why):
                                raise UserError(why)
                why = "it ended without a word"
            except (*DEATHS, ReplicaUnavailableError, DeploymentUnavailableError) as error:
                why = first_line(error)
            if shown:
                break
        raise VideoLost("the process that made the video died; ask again") from RuntimeError(why)

    def frame_size(self) -> int:
        with ThreadPoolExecutor(1) as aside:
            # Serve does not let itself be waited for in a thread that runs an event loop.
            return int(aside.submit(lambda: self._handle.frame_size.remote().result()).result())

    def forget(self, identity: str) -> None:
        """Nothing is to do: a changed adapter is another version."""

    def _news(self, wish: Wish, reference: bytes, sound: bytes, most_seconds: float) -> Iterator[News]:
        check_identity(self._run, wish.identity)
        version = "" if wish.identity is None else version_of(self._run, wish.identity)
        asked = self._handle.options(stream=True, multiplexed_model_id=version)
        answer = asked.speak.remote(wish, reference, sound, most_seconds)
        with closing(_Cancelled(answer)):
            yield from answer


class _Cancelled:
    """An answer that nobody waits for once it is closed."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def close(self) -> None:
        self._answer.cancel()


def version_of(run: RunFolder, identity: str) -> str:
    """What Serve knows somebody's model by: another one once her adapter has changed."""
    adapter = run.client(identity).newest_adapter.stat()
    return f"{identity}@{adapter.st_ino}-{adapter.st_mtime_ns}"


def identity_of(version: str) -> str:
    return version.partition("@")[0]


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
        SpeakerReplica, name=SPEAKER, max_ongoing_requests=1, ray_actor_options=options, **scaled
    )
    return deployed.bind(str(run.path.resolve()), identities)


@contextmanager
def replicas(name: str, run: RunFolder, least: int, most: int, identities: int, gpus: float) -> Iterator[Replicas]:
    """Replicas on the cluster that this process has joined, for as long as the block lasts.

    name: of Serve's application; one that is there already is taken over. Raises `ClusterError`.
    """
    if not ray.is_initialized():
        raise ClusterError("join a cluster first (actors.connection.connect)")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        # Nobody reaches them but by this process.
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        handle = serve.run(
            speaker_deployment(run, least, most, identities, gpus),
            name=name,
            route_prefix=None,
            logging_config={"log_level": "WARNING"},
        )
    except (RayServeException, RuntimeError, *DEATHS) as error:
        raise ClusterError(f"the replicas of {run.path} did not start: {first_line(error)}") from error
    try:
        yield Replicas(run, handle, most)
    finally:
        # Not waited for: a job that is stopped has seconds, and where the cluster is this process's own it ends anyway.
        serve.delete(name, _blocking=False)
