"""The tab *Federation*: a run while it goes on, a plan for another, and the report of one that has ended."""

import shutil
from contextlib import suppress
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedtalk_ray.errors import UserError
from fedtalk_ray.federation.privacy_plan import plan_lines
from fedtalk_ray.report import sections
from fedtalk_ray.report.facts import key_figures, read_facts, sentence
from fedtalk_ray.report.page import write_report
from fedtalk_ray.report.warnings import warnings_of
from fedtalk_ray.runs.folder import RunFolder

LOOK_EVERY_S = 2.0

MOST_ROUNDS = 1000
"""That are planned here: the accounts of more take minutes, and everybody's plans wait for each other."""

TEMPLATE = "federation.html.j2"

NO_RUN = "<p>There is no run here yet: <code>fedtalk train</code> or <code>make demo</code> makes one.</p>"

SHOWN = (sections.convergence, sections.communication, sections.privacy)
"""Of the report's sections, those that change with every round."""


def federation_tab(run: RunFolder, folder: Path) -> None:
    """Lays it out in the Blocks that is open. run: the page's own; those beside it can be chosen. folder: into which
    what is shown of runs is copied: the page hands out nothing from elsewhere."""
    around = run.path.absolute().parent
    known = runs_in(around)
    first = run.path.name if run.path.name in known else next(iter(known), None)
    with gr.Row():
        chosen = gr.Dropdown(known, value=first, label=f"Run in {around}", scale=3)
        report = gr.Button("Write its report", scale=1)
    written = gr.File(label="The report, one page that opens from disk", visible=False, interactive=False)
    said = gr.Markdown()
    page = gr.HTML(elem_id="run")
    sample = gr.Video(interactive=False, visible=False, height=360, elem_id="sample")
    below = gr.Markdown("Above the truth, below what the model makes of its first frame and the sound:", visible=False)
    sheet = gr.Image(
        show_label=False,
        interactive=False,
        visible=False,
        alt_text="Twelve instants of a clip: the truth above, what the model makes below",
        buttons=[],
        elem_id="sheet",
    )
    seen = gr.State("")
    timer = gr.Timer(LOOK_EVERY_S)
    look = partial(_look, around, folder)
    timer.tick(look, [chosen, seen], [page, sample, below, sheet, seen], show_progress="hidden", queue=False)
    chosen.change(
        lambda name: look(name, ""), chosen, [page, sample, below, sheet, seen], show_progress="hidden", queue=False
    )
    chosen.focus(lambda: gr.update(choices=runs_in(around)), None, chosen, show_progress="hidden", queue=False)
    report.click(partial(_report, around, folder), chosen, [written, said])
    with gr.Accordion("Plan the noise of another run", open=False):
        with gr.Row():
            clients = gr.Number(64, label="Clients", precision=0, minimum=1, maximum=10**9)
            rounds = gr.Number(48, label="Rounds of all phases together", precision=0, minimum=1, maximum=MOST_ROUNDS)
            cohort = gr.Number(16, label="Clients a round", precision=0, minimum=1, maximum=10**9)
            epsilon = gr.Number(8, label="Epsilon", minimum=0)
            delta = gr.Number(1e-5, label="Delta, well below 1 / clients", minimum=0)
        count = gr.Button("Work out the noise")
        plan = gr.Textbox(label="The plan", lines=6, interactive=False)
        count.click(_plan, [clients, rounds, epsilon, delta, cohort], plan)


def runs_in(folder: Path) -> list[str]:
    """The names of the runs in a folder, the last that was at work first."""
    found: list[tuple[float, str]] = []
    for place in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):  # somebody else's folder, or one that is just being removed
            if (run := RunFolder(place)).exists():
                found.append((-run.changed(), place.name))
    return [name for _, name in sorted(found)]


def _look(around: Path, folder: Path, name: str | None, seen: str) -> tuple[Any, Any, Any, Any, str]:
    """The run as it is now, where it has changed since it was `seen`."""
    if not name or name not in runs_in(around):
        return NO_RUN, gr.skip(), gr.skip(), gr.skip(), ""
    run = RunFolder(around / name)
    newest = run.newest_sample()
    now = f"{name} {run.changed()} {newest}"
    if now == seen:
        return gr.skip(), gr.skip(), gr.skip(), gr.skip(), seen
    video = sheet = gr.update(visible=False, value=None)
    said = gr.update(visible=newest is not None)
    if newest is not None:
        label = f"The newest sample, of round {newest[0]}: somebody whom nobody trained on, with a mouth from the sound"
        video = gr.update(visible=True, value=_copied(newest[1], folder, name), label=label)
        sheet = gr.update(visible=True, value=_copied(newest[1].with_suffix(".png"), folder, name))
    try:
        return render(run), video, said, sheet, now
    except UserError as error:
        return f"<p>{escape(str(error))}</p>", video, said, sheet, now


def _copied(file: Path, folder: Path, run: str) -> str:
    place = folder / f"{run}-{file.name}"
    shutil.copyfile(file, place)
    return str(place)


def render(run: RunFolder) -> str:
    """The run's figures and plots as HTML. Raises `UserError`s."""
    facts = read_facts(run)
    folder = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return folder.get_template(TEMPLATE).render(
        sentence=sentence(facts, None),
        done=facts.last,
        rounds=facts.config.all_rounds,
        phase=facts.history[-1].get("phase", ""),
        figures=key_figures(facts),
        warnings=warnings_of(facts),
        sections=[make(facts) for make in SHOWN],
    )


def _report(around: Path, folder: Path, name: str | None) -> tuple[Any, str]:
    try:
        if not name or name not in runs_in(around):
            raise UserError("choose a run first")
        place = write_report(around / name)
    except UserError as error:
        return gr.update(visible=False), f"**There is no report:** {escape(str(error))}"
    return gr.update(visible=True, value=_copied(place, folder, name)), f"It lies in `{escape(str(place))}`."


def _plan(clients: float, rounds: float, epsilon: float, delta: float, cohort: float) -> str:
    if not all(number and number >= 1 for number in (clients, rounds, cohort)):
        return "clients, rounds and clients a round are 1 or more"
    try:
        return "\n".join(plan_lines(int(clients), int(rounds), epsilon or 0, delta or 0, int(cohort)))
    except UserError as error:
        return str(error).replace("--", "")
