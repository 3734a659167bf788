"""The tab *Personalise*: clips, a look at them, training with a curve, before and after, and deletion."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from fedtalk_ray.corpora.layouts.folder import SUFFIXES
from fedtalk_ray.errors import UserError
from fedtalk_ray.generation.scene import Stopped
from fedtalk_ray.page.turns import begin_video, begin_work, ended, player, result_of, sound_of
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service.identities import delete_person
from fedtalk_ray.service.making import Wish
from fedtalk_ray.service.person import MOST_CLIPS, Checked, Person
from fedtalk_ray.service.speaking import Speaking
from fedtalk_ray.training.personalize import Personalized, personalize

CONSENT = "These clips show me, or somebody who agreed to it. They and what is learned of them stay in this folder."

STEPS = 150
"""As many as `fedtalk personalize` takes."""

SHOWN_S = 10.0
"""Seconds of a clip that are spoken before and after, at most."""

COLUMNS = ["clip", "length", "used", "what to do better"]


def personalise_tab(speaking: Speaking, run: RunFolder, most_seconds: float) -> None:
    """Lays it out in the Blocks that is open. most_seconds: of sound that is spoken."""
    if not run.exists():
        gr.Markdown(
            "This page was opened with a model and no run, so there is nothing to personalise beside. "
            "Open it with one: `fedtalk app --run RUN`, for example the run of `make demo`, `runs/demo/run`."
        )
        return
    gr.Markdown(
        "Teach this machine your own mouth and teeth. What you give stays on the machine that runs this page, in "
        f"`{escape(str(run.clients_folder))}/NAME`; nothing of it goes into the shared model."
    )
    with gr.Row():
        with gr.Column():
            name = gr.Textbox(label="Name of your folder", info="small letters and digits, as in anna", max_lines=1)
            clips = gr.File(
                file_count="multiple",
                file_types=list(SUFFIXES),
                label=f"Clips of you speaking, 3 to {MOST_CLIPS}",
                elem_id="clips",
                type="filepath",
            )
            recorded = gr.Video(
                sources=["webcam"],
                include_audio=True,
                # Mirrored it would be coded anew, by a program that may not be there, and learned mirrored.
                webcam_options=gr.WebcamOptions(mirror=False),
                label="or record half a minute and more",
                height=240,
            )
            consent = gr.Checkbox(label=CONSENT)
            steps = gr.Slider(10, 600, STEPS, step=10, label="Steps of training")
            with gr.Row():
                look = gr.Button("Look at my clips")
                button = gr.Button("Personalise", variant="primary")
                stop = gr.Button("Stop", interactive=False)
            with gr.Accordion("Deletion", open=False):
                gr.Markdown(
                    "Clips, what was prepared of them, the adapter with pictures of your mouth, and your consent: the "
                    "folder above goes."
                )
                again = gr.Textbox(label="Your folder's name once more", max_lines=1)
                delete = gr.Button("Delete everything of me", variant="stop")
        with gr.Column():
            told = gr.Markdown("Give a name and clips.", elem_id="told-of-person")
            table = gr.Dataframe(headers=COLUMNS, interactive=False, visible=False, label="Your clips", wrap=True)
            curve = gr.LinePlot(
                pd.DataFrame({"step": [], "loss": []}),
                x="step",
                y="loss",
                label="Loss by step: each draws other noise, so it wanders",
                visible=False,
            )
            compared = gr.HTML(elem_id="compared")
    outputs = [clips, recorded, told, table, curve, compared, look, button, stop]
    events: list[dict[str, Any]] = [
        pressed.click(
            partial(_personalise, speaking, run, most_seconds, only_look),
            [name, clips, recorded, consent, steps],
            outputs,
            show_progress="hidden",
            concurrency_limit=4,
        )
        for pressed, only_look in ((look, True), (button, False))
    ]
    stop.click(
        lambda: ("Stopped.", gr.update(interactive=True), gr.update(interactive=True), gr.update(interactive=False)),
        None,
        [told, look, button, stop],
        cancels=events,
        show_progress="hidden",
        queue=False,
    )

    def forget(whose: str, repeated: str) -> tuple[Any, ...]:
        try:
            line = _delete(speaking, run, whose or "", repeated or "")
        except UserError as error:
            return f"**Nothing was deleted:** {escape(str(error))}", *(gr.skip(),) * 3, repeated
        gone = gr.update(visible=False, value=None)
        return line, gone, gone, "", ""

    delete.click(forget, [name, again], [told, table, curve, compared, again], show_progress="hidden", queue=False)


async def _personalise(
    speaking: Speaking,
    run: RunFolder,
    most_seconds: float,
    only_look: bool,
    name: str,
    clips: list[str] | None,
    recorded: str | None,
    consent: bool,
    steps: int,
) -> AsyncIterator[tuple[Any, ...]]:
    """What the page shows, step after step: what was given and is kept, what is told and shown, the buttons."""
    idle = (gr.update(interactive=True), gr.update(interactive=True), gr.update(interactive=False))
    busy = (gr.update(interactive=False), gr.update(interactive=False), gr.update(interactive=True))
    same, kept = (gr.skip(),) * 3, (gr.skip(),) * 2
    try:
        person = Person(run, (name or "").strip())
        if not consent:
            raise UserError("say that you agree: the box above the buttons")
        given = [Path(each) for each in [*(clips or []), *([recorded] if recorded else [])]]
        count = await asyncio.to_thread(person.keep, given, CONSENT)
        for place in given:
            place.unlink(missing_ok=True)  # what the page received; her folder has it
        yield None, None, f"{count} clips are in your folder. Looking at them ...", *same, *busy
        job = await begin_work(speaking, partial(_look, person))
        try:
            while not await ended(job):
                yield (*kept, *(gr.skip(),) * 7)
            looked = result_of(job)
        finally:
            speaking.queue.drop(job)
        rows = pd.DataFrame([_row(each) for each in looked], columns=COLUMNS)
        looks = gr.update(value=rows, visible=True)
        usable = sum(each.usable for each in looked)
        if only_look:
            yield *kept, f"{usable} of {len(looked)} clips can be used.", looks, *same[1:], *idle
            return
        yield *kept, f"Training on {usable} clips ...", looks, *same[1:], *busy
        losses: list[tuple[int, float]] = []
        result = None
        async for news in _trained(speaking, run, person, int(steps)):
            if isinstance(news, Personalized):
                result = news
                continue
            losses.append((len(losses) + 1, news))
            if len(losses) % max(1, int(steps) // 30) == 0:
                plot = gr.update(value=pd.DataFrame(losses, columns=["step", "loss"]), visible=True)
                yield *kept, f"Training: step {len(losses)} of {int(steps)}.", gr.skip(), plot, *same[2:], *busy
        assert result is not None
        figures = f"held-out loss {result.loss_before:.4f} before, {result.loss_after:.4f} after"
        line, videos = f"Done: {figures}. *Speak* knows you as **{escape(person.name)}** now.", ""
        try:
            with tempfile.TemporaryDirectory(prefix="fedtalk-page-") as folder:
                clip = person.shown_by(looked)
                said = await asyncio.to_thread(sound_of, clip, min(most_seconds, SHOWN_S), Path(folder))
                for identity, label in ((None, "The shared model, before"), (person.name, "Your own, after")):
                    telling = f"Trained: {figures}. Showing before and after ..."
                    yield *kept, telling, gr.skip(), gr.skip(), videos, *busy
                    job = await begin_video(speaking, Wish(identity), clip, said, most_seconds)
                    speaking.shown.setdefault(person.name, []).append(job)
                    try:
                        while not await ended(job):
                            yield (*kept, *(gr.skip(),) * 7)
                        result_of(job)
                    except BaseException:
                        speaking.queue.drop(job)
                        raise
                    videos += player(job, label)
        except UserError as error:
            person.check_here()
            line += f" Before and after cannot be shown: {escape(str(error))}"
        yield *kept, line, gr.skip(), gr.skip(), videos, *idle
    except UserError as error:
        yield *kept, f"**It could not be done:** {escape(str(error))}", *same, *idle


def _look(person: Person, _: Path, stopped: Callable[[], bool]) -> list[Checked]:
    def go_on() -> None:
        if stopped():
            raise Stopped
        person.check_here()

    return person.while_she_stays(lambda: person.prepare(go_on))


def _delete(speaking: Speaking, run: RunFolder, name: str, repeated: str) -> str:
    """Deletes everything of somebody; what she is told. Raises `UserError`."""
    person = Person(run, name.strip())
    if repeated.strip() != person.name:
        raise UserError("type the folder's name once more, beside the button")
    if not delete_person(speaking, person.name):
        raise UserError(f"there is no folder {person.name}")
    return f"Everything of {escape(person.name)} is deleted: `{escape(str(person.folder.path))}` is gone."


async def _trained(
    speaking: Speaking, run: RunFolder, person: Person, steps: int
) -> AsyncIterator[float | Personalized]:
    """The loss after every step, then what came of it."""
    loop, news = asyncio.get_running_loop(), asyncio.Queue[float | None]()

    def train(_: Path, stopped: Callable[[], bool]) -> Personalized:
        def tick(losses: dict[str, float]) -> None:
            if stopped():
                raise Stopped
            person.check_here()
            loop.call_soon_threadsafe(news.put_nowait, losses["total"])

        try:
            return person.while_she_stays(
                lambda: personalize(run.path, person.name, steps, tick, str(person.folder.shards))
            )
        finally:
            speaking.maker.forget(person.name)

    job = await begin_work(speaking, train)
    job.result.add_done_callback(lambda _: loop.call_soon_threadsafe(news.put_nowait, None))
    try:
        while (loss := await news.get()) is not None:
            yield loss
        yield result_of(job)
    finally:
        await asyncio.to_thread(speaking.queue.drop, job)


def _row(each: Checked) -> tuple[str, str, str, str]:
    used = "yes" if each.usable else "no"
    return each.clip, f"{each.seconds:.1f} s", used, "; ".join(each.advice) or "all is well"
