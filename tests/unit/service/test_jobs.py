"""The queue of the service: order, its bound, taking back, forgetting."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedtalk_ray.errors import UserError
from fedtalk_ray.service import jobs
from fedtalk_ray.service.jobs import JobQueue, QueueFull, begun


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    made = JobQueue(tmp_path / "jobs", most=2)
    yield made
    made.close()


def held(queue: JobQueue) -> tuple[threading.Event, threading.Event, jobs.Job]:
    """A job that runs until it is let go, or asked to stop."""
    began, go = threading.Event(), threading.Event()

    def work(folder: Path, stopped) -> str:
        began.set()
        (folder / "half").write_text("made")
        while not (stopped() or go.wait(0.01)):
            pass
        return "stopped" if stopped() else "made"

    queue.begin(job := queue.new(), work)
    assert began.wait(10)
    return began, go, job


def test_jobs_run_one_after_the_other_in_order(queue: JobQueue) -> None:
    ran: list[str] = []
    _, go, first = held(queue)
    others = [queue.new() for _ in range(2)]
    for name, job in zip("ab", others, strict=True):
        queue.begin(job, lambda folder, stopped, name=name: ran.append(name))
    assert [job.state for job in (first, *others)] == ["running", "waiting", "waiting"] and not ran
    go.set()
    assert first.result.result(10) == "made"
    others[1].result.result(10)
    assert ran == ["a", "b"] and {job.state for job in (first, *others)} == {"done"}


def test_what_runs_alone_does_so_beside_the_others_and_one_after_the_other(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path / "jobs", most=4, at_once=2, apart=True)
    _, go, held_up = held(queue)
    first, second, other = (queue.new() for _ in range(3))
    began, goes_on = threading.Event(), threading.Event()
    queue.begin(first, lambda folder, stopped: began.set() or goes_on.wait(10), alone=True)
    queue.begin(second, lambda folder, stopped: None, alone=True)
    queue.begin(other, lambda folder, stopped: "made")
    assert began.wait(10) and other.result.result(10) == "made"
    assert [job.state for job in (held_up, first, second)] == ["running", "running", "waiting"]
    queue.drop(second)
    goes_on.set()
    go.set()
    assert first.result.result(10) and second.state == "cancelled"
    queue.close()


def test_one_more_than_may_wait_is_refused_and_leaves_nothing(queue: JobQueue, tmp_path: Path) -> None:
    _, go, _ = held(queue)
    for _ in range(2):
        queue.begin(queue.new(), lambda folder, stopped: None)
    with pytest.raises(QueueFull):
        queue.new()
    assert len(list((tmp_path / "jobs").iterdir())) == 3
    go.set()


def test_a_form_that_is_still_being_copied_counts_as_waiting(queue: JobQueue) -> None:
    given = [queue.new() for _ in range(3)]
    with pytest.raises(QueueFull):
        queue.new()
    queue.drop(given[0])
    queue.new()


def test_a_job_that_is_taken_back_while_it_runs_stops_and_leaves_nothing(queue: JobQueue, tmp_path: Path) -> None:
    _, _, job = held(queue)
    queue.drop(job)
    assert queue.get(job.name) is None and job.result.result(10) == "stopped" and job.state == "cancelled"
    after = queue.new()
    queue.begin(after, lambda folder, stopped: None)
    after.result.result(10)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [after.name]
    assert queue.get(job.name) is None


def test_a_job_that_is_taken_back_counts_until_it_has_stopped(queue: JobQueue) -> None:
    """Or whoever asks and hangs up would fill the queue beyond its bound."""
    began, go = threading.Event(), threading.Event()

    def deaf(folder: Path, stopped) -> None:
        began.set()
        go.wait(10)

    queue.begin(job := queue.new(), deaf)
    assert began.wait(10)
    queue.drop(job)
    for _ in range(2):
        queue.new()
    with pytest.raises(QueueFull):
        queue.new()
    go.set()
    job.result.result(10)


def test_a_job_that_waits_and_is_taken_back_never_runs(queue: JobQueue) -> None:
    ran = []
    _, go, first = held(queue)
    queue.begin(job := queue.new(), lambda folder, stopped: ran.append(1))
    queue.drop(job)
    go.set()
    first.result.result(10)
    queue.begin(last := queue.new(), lambda folder, stopped: None)
    last.result.result(10)
    assert not ran and not job.folder.exists()


def test_what_failed_says_so_and_the_next_one_runs(queue: JobQueue) -> None:
    def fails(folder: Path, stopped) -> None:
        raise ValueError("no")

    queue.begin(job := queue.new(), fails)
    assert isinstance(job.result.exception(10), ValueError) and job.state == "failed"
    queue.begin(after := queue.new(), lambda folder, stopped: 7)
    assert after.result.result(10) == 7


def test_what_a_failed_job_worked_on_is_not_kept_with_it(queue: JobQueue) -> None:
    class Large:
        pass

    kept: list[weakref.ref[Large]] = []

    def fails(folder: Path, stopped) -> None:
        large = Large()
        kept.append(weakref.ref(large))
        try:
            raise ValueError("inner")
        except ValueError as error:
            raise UserError("no") from error

    queue.begin(job := queue.new(), fails)
    assert str(job.result.exception(10)) == "no"
    queue.begin(after := queue.new(), lambda folder, stopped: None)
    after.result.result(10)
    gc.collect()
    assert kept[0]() is None


def test_of_ended_jobs_only_the_last_stay(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path / "jobs", most=2, kept=3)
    names = []
    for _ in range(6):
        queue.begin(job := queue.new(), lambda folder, stopped: (folder / "video").write_text("x"))
        job.result.result(10)
        names.append(job.name)
    last = queue.new()
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == {*names[-3:], last.name}
    assert [queue.get(name) is not None for name in names] == [False] * 3 + [True] * 3
    queue.close()


def test_what_nobody_fetches_is_forgotten(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(jobs, "monotonic", lambda: clock[0])
    queue.begin(job := queue.new(), lambda folder, stopped: (folder / "video").write_text("x"))
    job.result.result(10)
    clock[0] += 3599
    queue.begin(queue.new(), lambda folder, stopped: None)
    assert queue.get(job.name) is job and job.folder.exists()
    clock[0] += 2
    queue.new()
    assert queue.get(job.name) is None and not job.folder.exists()


def test_it_is_forgotten_though_nobody_asks_for_anything(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path / "jobs", most=2, keep_s=0.2)
    queue.begin(job := queue.new(), lambda folder, stopped: (folder / "video").write_text("x"))
    job.result.result(10)
    until = time.monotonic() + 20
    while job.folder.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    queue.close()


def test_what_is_too_old_is_not_given_out_any_more(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.begin(job := queue.new(), lambda folder, stopped: None)
    job.result.result(10)
    assert queue.get(job.name) is job
    monkeypatch.setattr(jobs, "monotonic", lambda: time.monotonic() + 3601)
    assert queue.get(job.name) is None and not job.folder.exists()


def test_what_is_put_in_the_queue_for_somebody_who_is_gone_is_taken_back(queue: JobQueue) -> None:
    begins, goes_on, put = threading.Event(), threading.Event(), []

    def begin() -> jobs.Job:
        begins.set()
        assert goes_on.wait(10)
        queue.begin(job := queue.new(), lambda folder, stopped: None)
        put.append(job)
        return job

    async def leaves() -> None:
        asked = asyncio.ensure_future(begun(queue, begin))
        await asyncio.to_thread(begins.wait, 10)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        goes_on.set()
        while not put or queue.get(put[0].name) is not None:
            await asyncio.sleep(0.01)

    with ThreadPoolExecutor(1) as aside:  # a browser's tests leave a loop in this thread
        aside.submit(asyncio.run, asyncio.wait_for(leaves(), 20)).result()
    assert not put[0].folder.exists()
