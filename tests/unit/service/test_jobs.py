"""The queue of the service: order, its bound, taking back, forgetting."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedtalk_ray.errors import UserError
from fedtalk_ray.service import jobs
from fedtalk_ray.service.jobs import JobQueue, QueueFull


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
    ran: list[int] = []
    queue.begin(second, lambda folder, stopped: ran.append(2), alone=True)
    queue.begin(other, lambda folder, stopped: "made")
    assert began.wait(10) and other.result.result(10) == "made"
    assert [job.state for job in (held_up, first, second)] == ["running", "running", "waiting"]
    queue.drop(second)
    goes_on.set()
    go.set()
    assert first.result.result(10) and second.state == "cancelled"
    queue.close()
    assert not ran


def test_one_more_than_may_wait_is_refused_also_while_a_form_is_copied(queue: JobQueue, tmp_path: Path) -> None:
    given = [queue.new() for _ in range(3)]
    with pytest.raises(QueueFull):
        queue.new()
    assert len(list((tmp_path / "jobs").iterdir())) == 3
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


def test_a_failed_job_says_so_and_the_next_runs(queue: JobQueue) -> None:
    def fails(folder: Path, stopped) -> None:
        raise UserError("no")

    queue.begin(job := queue.new(), fails)
    assert str(job.result.exception(10)) == "no" and job.state == "failed"
    queue.begin(after := queue.new(), lambda folder, stopped: 7)
    assert after.result.result(10) == 7


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
    assert queue.get(job.name) is None and not job.folder.exists()
