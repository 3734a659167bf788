"""What the page asks of the service's queue: work that waits for its turn like everybody's, and the videos it makes."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from scipy.io import wavfile

from fedtalk_ray.errors import UserError
from fedtalk_ray.media.video import SAMPLE_RATE, VideoError, read_audio
from fedtalk_ray.service.jobs import Job, QueueFull, Work, begun
from fedtalk_ray.service.making import Wish, told
from fedtalk_ray.service.speaking import Speaking, why_not


async def begin_video(speaking: Speaking, wish: Wish, reference: Path, sound: Path, most_seconds: float) -> Job:
    """most_seconds: of sound. Raises `UserError`s."""
    return await begun(speaking.queue, partial(_begin_video, speaking, wish, reference, sound, most_seconds))


def _begin_video(speaking: Speaking, wish: Wish, reference: Path, sound: Path, most_seconds: float) -> Job:
    with contextlib.ExitStack() as opened:
        try:
            face, said = (opened.enter_context(open(place, "rb")) for place in (reference, sound))
        except FileNotFoundError:
            raise UserError("what you gave is not kept any more; give it again") from None
        with _told_where_full():
            return speaking.begin(wish, face, said, most_seconds)


async def begin_work(speaking: Speaking, work: Work) -> Job:
    """Raises `UserError` where the queue is full."""

    def begin() -> Job:
        with _told_where_full():
            return speaking.begin_training(work)

    return await begun(speaking.queue, begin)


def sound_of(clip: Path, seconds: float, folder: Path) -> Path:
    """The first so many seconds of a clip's sound, as a file in `folder`. Raises `UserError`."""
    place = folder / "said.wav"
    try:
        heard = read_audio(clip, seconds)[: round(seconds * SAMPLE_RATE)]
    except VideoError as error:
        raise UserError(told(error, clip.parent)) from error
    wavfile.write(place, SAMPLE_RATE, (heard.clip(-1, 1) * 32767).astype("int16"))
    return place


async def ended(job: Job, seconds: float = 1.0) -> bool:
    """Whether a job has ended, within so many seconds at most.

    Whoever waits yields in between: Gradio ends what a closed page has asked for at its next step.
    """
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    job.result.add_done_callback(lambda _: loop.call_soon_threadsafe(end.set))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(end.wait(), seconds)
    return job.result.done()


def result_of(job: Job) -> Any:
    """Of a job that has ended. Raises `UserError`."""
    if error := job.error:
        raise UserError(why_not(error, job) or "an error of the page's own; its log says which")
    return job.result.result()


def player(job: Job, label: str) -> str:
    """A job's video, as HTML. It is the job's own file, and goes with the job."""
    return (
        f'<figure><video controls playsinline aria-label="{escape(label)}" src="/v1/jobs/{job.name}/video"></video>'
        f"<figcaption>{escape(label)}</figcaption></figure>"
    )


def two_players(videos: Sequence[Path]) -> tuple[Any, Any]:
    """Updates that show the first video in the first player and the second, where there is one, in the second."""
    shown = [gr.update(value=str(video), visible=True) for video in videos[:2]]
    hidden = [gr.update(value=None, visible=False) for _ in range(2 - len(shown))]
    first, second = shown + hidden
    return first, second


@contextlib.contextmanager
def _told_where_full() -> Iterator[None]:
    try:
        yield
    except QueueFull:
        raise UserError("as many people wait as may; try again in a moment") from None
