"""The page of `fedtalk app`: *Speak*, *Live*, *Personalise*, *Federation*, over the same queue as the HTTP service.

It loads nothing from anywhere else: no fonts, no scripts, no counters.
"""

from pathlib import Path

import gradio as gr
import httpx
from fastapi import FastAPI
from gradio import processing_utils
from PIL import Image

from fedtalk_ray.media.video import MOST_PIXELS
from fedtalk_ray.page.examples import drawn_people
from fedtalk_ray.page.federation import federation_tab
from fedtalk_ray.page.live import live_page, live_tab
from fedtalk_ray.page.personalise import personalise_tab
from fedtalk_ray.page.speak import speak_tab
from fedtalk_ray.service.live import why_not_live
from fedtalk_ray.service.speaking import Speaking

CSS = """
#live video, #compared video, .figures, .plots figure, .plots img { width: 100%; }
#live video, #compared video { max-height: 360px; border-radius: .5rem; background: #000; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; }
.figures dd { margin: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
#compared > div, #compared .prose { display: flex; flex-wrap: wrap; gap: 1rem; }
#compared figure { margin: 0; flex: 1 1 14rem; }
.plots figure { margin: 0; min-width: 0; max-width: 34rem; }
.plots img { height: auto; background: #fff; border-radius: .25rem; }
#speak-live iframe { width: 100%; height: 46rem; border: 0; }
@media (max-width: 44rem) {
  #speak-live iframe { height: 68rem; }
  .tab-container button { padding-inline: .45rem !important; }
}
.warning { border-left: 4px solid #b36b00; padding-left: .75rem; }
progress { width: 100%; }
button[role=tab].selected { color: var(--primary-700) !important; }
.dark button[role=tab].selected { color: var(--primary-300) !important; }
#sheet button, #sheet .image-frame { overflow-x: auto; }
#sheet img { min-width: 60rem; max-width: none; height: auto; }
.min_value, .max_value, .or, #said time, #said .controls * { color: var(--body-text-color-subdued) !important; }
"""

KEPT_S = 3600
"""Seconds that the page keeps what it was given and what it showed."""


def show_page(app: FastAPI, speaking: Speaking, folder: Path, most_seconds: float, body_mb: int) -> FastAPI:
    """The service with the page at /. folder: for the page's examples. most_seconds: of sound. body_mb: of a file."""
    run = speaking.run
    theme = gr.themes.Default(
        primary_hue="blue", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    ).set(
        # Gradio's own are too pale to read for many.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
    )
    people = drawn_people(run, speaking.maker.frame_size(), folder)
    app.include_router(live_page(people))
    with gr.Blocks(title="fedtalk", analytics_enabled=False, delete_cache=(60, KEPT_S)) as page:
        gr.Markdown(f"# fedtalk\nA face and a voice become a talking head. The model is `{run.path}`.")
        with gr.Tab("Speak"):
            speak_tab(speaking, people, most_seconds)
        with gr.Tab("Live"):
            live_tab(why_not_live(speaking))
        with gr.Tab("Personalise"):
            personalise_tab(speaking, run, most_seconds)
        with gr.Tab("Federation"):
            federation_tab(run, folder)
    page.queue(max_size=32)
    _keep_to_itself(page)
    return gr.mount_gradio_app(
        app,
        page,
        "/",
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=body_mb << 20,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme,
        css=CSS,
    )


def _keep_to_itself(page: gr.Blocks) -> None:
    """Gradio takes paths and addresses in the place of uploads, and would read and fetch them."""
    # Only what `launch` has started does it refuse to read this machine's files for; what is mounted it does not.
    page.has_launched = True
    nobody = httpx.MockTransport(lambda _: httpx.Response(403))
    processing_utils.async_transport = nobody  # type: ignore[assignment]
    # It opens pictures itself; Pillow refuses those of twice as many pixels.
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2
