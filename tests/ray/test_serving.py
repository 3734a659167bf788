"""The service with replicas of Ray Serve: each video is what one process makes, whoever dies meanwhile; and service and
page as an application, asked through Serve's own proxy."""

import asyncio
import gc
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import requests
from ray import serve

from fedtalk_ray.actors.application import Settings, application
from fedtalk_ray.actors.replicas import Replicas, SpeakerReplica, replicas
from fedtalk_ray.errors import UserError
from fedtalk_ray.generation.scene import Stopped
from fedtalk_ray.marking.verify import verify
from fedtalk_ray.model import adapters
from fedtalk_ray.model.pipeline import load_pipeline
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service import replica
from fedtalk_ray.service.http import Limits
from fedtalk_ray.service.making import Wish
from tests.served import TOKEN, Served, form, frames_of, own_adapter, png, run_of, until, wav
from tests.unit.conftest import tiny_pipeline

pytestmark = pytest.mark.nightly

NAMES = ["", "c0", "c1"]
LASTING = {"files": form(sound=wav(1.9)), "data": {"steps": 20}}
"""Long enough to die over."""
LONG = {"files": form(sound=wav(29.0)), "data": {"steps": 50}}


@pytest.fixture(scope="module")
def run(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(2, tiny_pipeline(), tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def serving(ray_cluster: None) -> Iterator[int]:
    """The port of Serve's own proxy."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()


@pytest.fixture(scope="module")
def two(run: Path, serving: int) -> Iterator[Replicas]:
    before = folders()
    with replicas("two", RunFolder(run), 2, 2, 3, 0) as made:
        assert len(folders() - before) == 2
        yield made
    assert not folders() - before, "what people gave goes, that of replicas that were killed too"


def folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("fedtalk-speaker-*"))


@pytest.fixture(scope="module")
def served(run: Path, two: Replicas, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(run, tmp_path_factory.mktemp("asked"), maker=two, limits=Limits(2, 30.0, 30.0))
    yield made
    made.close()


@pytest.fixture(scope="module")
def alone(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What one process makes of the same run, by identity."""
    folder = tmp_path_factory.mktemp("here")
    here = Served(run, folder / "asked")
    try:
        made = {name: frames_of(said(here, name), folder) for name in NAMES}
        made["lasting"] = frames_of(here.ask("POST", "/v1/generate", **LASTING).content, folder)
    finally:
        here.close()
    assert len({frames.tobytes() for frames in made.values()}) == len(made)
    return made


def said(by: Served, name: str) -> bytes:
    answer = by.ask("POST", "/v1/generate", files=form(), data={"identity": name} if name else {})
    assert answer.status_code == 200, answer.text
    return answer.content


def workers() -> list[Any]:
    """The replicas' actors."""
    names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
    return [ray.get_actor(name, namespace="serve") for name in names if name.startswith("SERVE_REPLICA::two#")]


def test_turns_of_several_people_by_two_replicas_are_what_one_process_makes(
    served: Served, alone: dict[str, np.ndarray], run: Path, tmp_path: Path
) -> None:
    order = [*NAMES, *NAMES]
    with ThreadPoolExecutor(4) as callers:
        videos = list(callers.map(partial(said, served), order))
    for video, name in zip(videos, order, strict=True):
        np.testing.assert_array_equal(frames_of(video, tmp_path), alone[name])
    (tmp_path / "signed.mp4").write_bytes(videos[0])
    assert verify(tmp_path / "signed.mp4").problem() == ""
    until(lambda: not list(served.folder.iterdir()))
    # A changed adapter speaks at once.
    own_adapter(run, "c1", adapters.with_adapters(load_pipeline(str(RunFolder(run).pipeline)).denoiser, None, 1.0, 3))
    assert (frames_of(said(served, "c1"), tmp_path) != alone["c1"]).any()
    assert served.ask("POST", "/v1/generate", files=form(), data={"identity": "c6"}).status_code == 404


def test_what_cannot_be_used_is_told_without_a_path_and_who_leaves_is_not_worked_for(served: Served) -> None:
    answer = served.ask("POST", "/v1/generate", files=form(sound=wav(30.1)))
    assert (answer.status_code, answer.json()["detail"]) == (400, "sound: is longer than 30 s")
    told = served.ask("POST", "/v1/generate", files=form(reference=png()[:-40])).json()["detail"]
    assert told.startswith("reference: ") and "/" not in told.replace("and/or", "")
    with pytest.raises(requests.ReadTimeout):
        served.ask("POST", "/v1/generate", **LONG, timeout=0.5)
    until(lambda: not list(served.folder.iterdir()))
    assert served.ask("POST", "/v1/generate", files=form()).status_code == 200


def test_beyond_replicas_and_places_to_wait_it_is_429(served: Served) -> None:
    answers = [served.ask("POST", "/v1/jobs", **LONG) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [202] * 4 + [429]
    names = [answer.json()["job"] for answer in answers[:4]]
    until(lambda: sum(served.ask("GET", f"/v1/jobs/{name}").json()["state"] == "running" for name in names) == 2)
    assert {served.ask("DELETE", f"/v1/jobs/{name}").status_code for name in names} == {204}
    until(lambda: not list(served.folder.iterdir()))


def test_a_job_for_which_no_replica_is_there_can_be_taken_back(run: Path, two: Replicas, tmp_path: Path) -> None:
    gone = Replicas(RunFolder(run), serve.get_deployment_handle("nobody", "two", _check_exists=False), 1)
    for name, data in (("reference", png()), ("sound", wav())):
        (tmp_path / name).write_bytes(data)
    began = time.monotonic()
    with pytest.raises(Stopped):
        gone.make(tmp_path, Wish(), 2.0, lambda: time.monotonic() > began + 1, None)
    assert time.monotonic() < began + 10


def test_a_replica_begins_the_next_when_the_one_taken_back_has_ended(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve sends the next one at once."""
    at_work, most = [], []

    def slow(model: Any, folder: Path, wish: Wish, seconds: float, stopped: Callable[[], bool], growing: Any) -> None:
        at_work.append(folder)
        most.append(len(at_work))
        while not stopped():
            time.sleep(0.05)
        time.sleep(0.2)
        at_work.remove(folder)
        raise Stopped

    monkeypatch.setattr(replica, "make_video", slow)

    async def three_in_a_row() -> None:
        one = SpeakerReplica(str(run), 1)
        for _ in range(3):
            news = one.speak(Wish(), png(), wav(), 2.0)
            await anext(news)
            leaving = asyncio.ensure_future(news.aclose())
            await asyncio.sleep(0)
            following = one.speak(Wish(), png(), wav(), 2.0)
            await anext(following)
            await asyncio.gather(leaving, following.aclose())
        ends = one.__del__
        monkeypatch.delattr(SpeakerReplica, "__del__")  # Serve calls it; Python itself would too
        await ends()

    before = folders()
    asyncio.run(three_in_a_row())
    gc.collect()
    assert most == [1] * 6 and not at_work and folders() == before


def test_a_request_outlives_the_replica_that_works_on_it_and_a_stream_says_that_it_broke(
    served: Served, alone: dict[str, np.ndarray], tmp_path: Path
) -> None:
    name = served.ask("POST", "/v1/jobs", **LASTING).json()["job"]
    until(lambda: served.ask("GET", f"/v1/jobs/{name}").json()["state"] == "running")
    killed = workers()
    assert len(killed) == 2
    for worker in killed:
        ray.kill(worker)
    until(lambda: served.ask("GET", f"/v1/jobs/{name}").json()["state"] == "done", 120)
    video = served.ask("GET", f"/v1/jobs/{name}/video").content
    np.testing.assert_array_equal(frames_of(video, tmp_path), alone["lasting"])
    assert served.ask("DELETE", f"/v1/jobs/{name}").status_code == 204
    long = {"files": LONG["files"], "data": LONG["data"] | {"stream": True}}
    with served.ask("POST", "/v1/generate", stream=True, **long) as answer:
        parts = answer.iter_content(None)
        assert next(parts)
        for worker in workers():
            ray.kill(worker)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(parts)


def test_the_application_speaks_streams_and_shows_the_page_to_who_has_a_token(
    serving: int, run: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    for changed, line in (({"run": "no/such"}, "no/such"), ({"tokens": "no/such"}, "no/such cannot be read")):
        with pytest.raises(UserError, match=line):
            application(Settings.model_validate({"run": "fedtalk-tiny", "tokens": str(tokens)} | changed))
    serve.run(application(Settings(run=str(run), tokens=str(tokens))), name="whole", route_prefix="/")
    address = f"http://127.0.0.1:{serving}"
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(f"{address}/v1/health").status_code == 401
        assert "Sign in" in session.get(address, headers={"accept": "text/html"}).text
        session.headers["Authorization"] = f"Bearer {TOKEN}"
        video = session.post(f"{address}/v1/generate", files=form(), data={"identity": "c1"})
        assert video.status_code == 200 and len(frames_of(video.content, tmp_path)) == 13
        with session.post(f"{address}/v1/generate", files=form(), data={"stream": True}, stream=True) as streamed:
            parts = list(streamed.iter_content(None))
        assert len(parts) > 1 and len(frames_of(b"".join(parts), tmp_path)) == 13
        assert "gradio" in session.get(address).text
        assert "Speak" in session.get(f"{address}/config").text
    serve.delete("whole")
