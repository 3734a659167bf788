"""The tab *Speak*: a face and a sound, and the person speaks; what is shown while it is made, and what it carries."""

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils

from fedtalk_ray.errors import UserError
from fedtalk_ray.marking.verify import verify
from fedtalk_ray.model.sampling import DEFAULT_GUIDANCE, DEFAULT_STEPS, Sampling
from fedtalk_ray.page.examples import Example
from fedtalk_ray.page.turns import begin_video, ended, result_of, two_players
from fedtalk_ray.service.jobs import Job
from fedtalk_ray.service.making import Wish
from fedtalk_ray.service.speaking import VIDEO, Speaking

SHARED = "nobody in particular (the shared model)"
WHOLE, CROP = "the whole picture", "the face alone"

READERS = ("espeak-ng", "espeak")
"""Programs that read a text aloud, offline, as they are called."""


def speak_tab(speaking: Speaking, examples: list[Example], most_seconds: float) -> None:
    """Lays it out in the Blocks that is open. most_seconds: of sound."""
    picture = gr.Image(
        sources=["upload", "webcam"],
        type="filepath",
        format="png",
        label="Picture of one face",
        height=240,
        render=False,
    )
    sound = gr.Audio(
        sources=["upload", "microphone"], type="filepath", label="What is said", elem_id="said", render=False
    )
    if examples:
        gr.Examples(
            [[str(each.picture), str(each.sound)] for each in examples],
            [picture, sound],
            label="Try it with somebody who is drawn",
            example_labels=[each.name for each in examples],
        )
        for each in examples:
            # Of what was given and is an hour old it deletes all but these: pictures it adds by itself.
            sound.keep_in_cache.add(processing_utils.save_file_to_cache(each.sound, sound.GRADIO_CACHE))
    with gr.Row():
        with gr.Column():
            kind = gr.Radio(["a picture", "a video"], value="a picture", label="The face is in")
            picture.render()
            video = gr.Video(sources=["upload", "webcam"], label="Video of one face", height=240, visible=False)
            sound.render()
            text = gr.Textbox(label="or a text that is read aloud", lines=2, visible=reader() is not None)
            who = gr.Dropdown([SHARED, *speaking.identities()], value=SHARED, label="Speaks as")
            beside = gr.Checkbox(label="beside it the shared model, to compare", visible=False)
            with gr.Accordion("More", open=False):
                shown = gr.Radio([WHOLE, CROP], value=WHOLE, label="Show")
                still = gr.Checkbox(label="A photo neither blinks nor sways")
                face = gr.Number(
                    0, label="Which face, counted from the left; 0: the largest", precision=0, minimum=0, maximum=1000
                )
                seed = gr.Number(0, label="Seed: another number, other noise", precision=0, minimum=0, maximum=2**53)
                steps = gr.Slider(1, 50, DEFAULT_STEPS, step=1, label="Denoising steps")
                guidance = gr.Slider(0, 10, DEFAULT_GUIDANCE, step=0.1, label="Guidance: how far sound is exaggerated")
            with gr.Row():
                button = gr.Button("Speak", variant="primary")
                stop = gr.Button("Stop", interactive=False)
        with gr.Column():
            told = gr.Markdown("Give a face and a sound, or take one of the drawn people above.", elem_id="told")
            live = gr.HTML(elem_id="live")
            made = gr.Video(label="The video", interactive=False, visible=False, height=360, elem_id="made")
            plain = gr.Video(label="The shared model", interactive=False, visible=False, height=360, elem_id="plain")
            carried = gr.Markdown(elem_id="carried")
    kind.change(
        lambda chosen: (gr.update(visible=chosen == "a picture"), gr.update(visible=chosen == "a video")),
        kind,
        [picture, video],
        show_progress="hidden",
        queue=False,
    )
    who.change(lambda name: gr.update(visible=name != SHARED), who, beside, show_progress="hidden", queue=False)
    who.focus(
        lambda: gr.update(choices=[SHARED, *speaking.identities()]),
        None,
        who,
        show_progress="hidden",
        queue=False,
    )
    given = [kind, picture, video, sound, text, who, beside, shown, still, face, seed, steps, guidance]
    outputs = [told, live, made, plain, carried, button, stop]
    work = button.click(
        partial(_speak, speaking, most_seconds), given, outputs, show_progress="hidden", concurrency_limit=8
    )
    stop.click(
        lambda: ("Stopped.", "", gr.update(interactive=True), gr.update(interactive=False)),
        None,
        [told, live, button, stop],
        cancels=[work],
        show_progress="hidden",
        queue=False,
    )


async def _speak(
    speaking: Speaking,
    most_seconds: float,
    kind: str,
    picture: str | None,
    video: str | None,
    sound: str | None,
    text: str | None,
    who: str,
    beside: bool,
    shown: str,
    still: bool,
    face: int,
    seed: int,
    steps: int,
    guidance: float,
) -> AsyncIterator[tuple[Any, ...]]:
    """What the page shows, step after step, by the order of its outputs."""
    reference = picture if kind == "a picture" else video
    busy = gr.update(interactive=False), gr.update(interactive=True)
    idle = gr.update(interactive=True), gr.update(interactive=False)
    hidden = gr.update(visible=False, value=None)
    try:
        if not reference:
            raise UserError(f"give {kind} of a face first")
        wish = Wish(
            None if who == SHARED else who,
            shown == CROP,
            still,
            int(face or 0) or None,
            int(seed or 0),
            Sampling(int(steps), float(guidance)),
            stream=True,
        )
        with tempfile.TemporaryDirectory(prefix="fedtalk-page-") as folder:
            said = Path(sound) if sound else await asyncio.to_thread(read_aloud, text or "", Path(folder))
            yield "Waiting for a turn ...", "", hidden, hidden, "", *busy
            wishes = [wish] if who == SHARED or not beside else [wish, Wish(**vars(wish) | {"identity": None})]
            videos: list[Any] = []
            for number, each in enumerate(wishes):
                job = await begin_video(speaking, each, Path(reference), said, most_seconds)
                try:
                    yield _doing(number, wishes), _player(job), *two_players(videos), "", *busy
                    while not await ended(job):
                        yield (gr.skip(),) * 7
                    result_of(job)
                except BaseException:
                    # Whoever closes the page or presses Stop is not worked for any more.
                    speaking.queue.drop(job)
                    raise
                videos.append(job.folder / VIDEO)
            verdict = await asyncio.to_thread(verify, videos[0])
            lines = [f"- {escape(line)}" for line in verdict.lines()]
            marks = "**What the video says of itself**\n\n" + "\n".join(lines)
            yield "Done.", gr.skip(), *two_players(videos), marks, *idle
    except UserError as error:
        yield f"**It could not be made:** {escape(str(error))}", "", hidden, hidden, "", *idle


def _doing(number: int, wishes: list[Wish]) -> str:
    name = escape(wishes[number].identity or "the shared model")
    return f"Being made by {name}; it plays while it comes."


def _player(job: Job) -> str:
    """Plays what has come, and goes when it has played: the whole video is below by then."""
    return (
        '<video controls autoplay playsinline aria-label="The video while it is made" onended="this.remove()" '
        f'src="/v1/jobs/{job.name}/stream"></video>'
    )


def reader() -> str | None:
    """The program on this machine that reads a text aloud."""
    return next((found for name in READERS if (found := shutil.which(name))), None)


def read_aloud(text: str, folder: Path) -> Path:
    """A text as a sound file in `folder`. Raises `UserError` for no text, and without a program that reads."""
    program = reader()
    if not text.strip():
        raise UserError("give a sound" + (" or a text" if program else "") + " first")
    if program is None:
        raise UserError("no program on this machine reads a text aloud; install espeak-ng, or give a sound")
    out = folder / "text.wav"
    command = [program, "-w", str(out), "--stdin"]
    done = subprocess.run(command, input=text[:5000].encode(), capture_output=True, timeout=60, check=False)
    if done.returncode or not out.is_file():
        raise UserError(f"{Path(program).name} could not read it: {done.stderr.decode(errors='replace').strip()[:200]}")
    return out
