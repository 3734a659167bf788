"""The tab *Live*: a microphone in, a face that says it out. A page of its own inside the page, on `/v1/live`.

Gradio sends sound when it has been recorded; here it leaves as one speaks.
"""

from html import escape
from pathlib import Path

import gradio as gr
from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedtalk_ray.page.examples import Example

TEMPLATE, AT = "live.html.j2", "/live"


def live_tab(why_not: str | None) -> None:
    """Lays it out in the Blocks that is open. why_not: why nobody can speak live here."""
    if why_not:
        gr.Markdown(f"**Nobody can speak live here:** {escape(why_not)}")
    else:
        gr.HTML(
            f'<iframe src="{AT}" title="Speak live" allow="microphone; autoplay"></iframe>',
            elem_id="speak-live",
        )


def live_page(examples: list[Example]) -> APIRouter:
    """What the tab shows, and the faces that it offers."""
    router = APIRouter(include_in_schema=False)
    faces = {f"{AT}/{each.picture.name}": each for each in examples}
    folder = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)

    @router.get(AT)
    def page() -> HTMLResponse:
        people = [(each.name, place) for place, each in faces.items()]
        return HTMLResponse(folder.get_template(TEMPLATE).render(people=people))

    @router.get(f"{AT}/{{name}}")
    def face(name: str) -> FileResponse:
        if (found := faces.get(f"{AT}/{name}")) is None:
            raise HTTPException(404, "nobody of that name is drawn here")
        return FileResponse(found.picture)

    return router
