"""`fedtalk report`: a run as one HTML page that opens from disk and asks no network for anything.

What the page shows is collected here as plain data; `report_page.html.j2` lays it out and escapes it. The page forbids
itself any connection, by a content security policy.
"""

import platform
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fedtalk_ray import __version__
from fedtalk_ray.evaluation import report_sections as sections
from fedtalk_ray.evaluation.report_audit import attacks, read_audit
from fedtalk_ray.evaluation.report_metrics import DOWN, ONE, UP, read_metrics, tables_of_groups
from fedtalk_ray.evaluation.report_run import key_figures, read_run, sentence, warnings_of
from fedtalk_ray.evaluation.report_svg import SERIES
from fedtalk_ray.evaluation.report_videos import make_videos, open_shards
from fedtalk_ray.evaluation.samples import exported_after
from fedtalk_ray.outputs import new_file

REPORT = "report.html"
METRICS = "metrics.json"
TEMPLATE = "report_page.html.j2"


def write_report(run: Path, out: Path | None = None, *, client: str | None = None, metrics: Path | None = None) -> Path:
    """Writes the page (RUN/report.html where `out` is None) and returns its place.

    client: whose face and adapter are shown too. metrics: what `fedtalk evaluate` wrote; None takes RUN/metrics.json
    where there is one. Raises `UserError`s; then there is no page, or the one that was there before.
    """
    out = out or run / REPORT
    text = render(collect(run, client, metrics))
    with new_file(out) as place:
        place.write_text(text, encoding="utf-8")
    return out


def collect(run: Path, client: str | None, metrics: Path | None) -> dict[str, Any]:
    """Everything that the page shows, by the names that the template knows."""
    found = read_run(run)
    measured = None
    if metrics is not None or (run / METRICS).is_file():
        measured = read_metrics(metrics or run / METRICS)
    manifest, why = open_shards(found.config)
    shards = quote(found.config.shards) if manifest else "SHARDS"
    command = f"fedtalk evaluate --run {quote(str(run))} --shards {shards} --out {quote(str(run / METRICS))}"
    return {
        "name": run.resolve().name,
        "sentence": sentence(found, manifest),
        "key_figures": key_figures(found),
        "warnings": warnings_of(found) + outdated(run, measured),
        "videos": make_videos(run, found.config, manifest, why, client),
        "measured": measured,
        "tables": tables_of_groups(measured) if measured else [],
        "arrows": {"up": UP, "down": DOWN, "one": ONE},
        "command": command,
        "sections": [
            sections.convergence(found),
            sections.weights(found),
            sections.jitter(measured, command),
            sections.privacy(found),
            attacks(run, found.last, read_audit(run)),
            sections.communication(found),
        ],
        "yaml": found.yaml,
        "series": SERIES,
        "versions": {
            "fedtalk_ray": __version__,
            "ray": version("ray"),
            "torch": version("torch"),
            "Python": platform.python_version(),
        },
    }


def outdated(run: Path, measured: dict[str, Any] | None) -> list[str]:
    """A warning where the figures are those of an older model than the one that is shown."""
    after, now = (measured or {}).get("after_round"), exported_after(run)
    if after is None or now is None or after == now:
        return []
    return [f"Figures of another model: the table and the jitter are of round {after}, the videos of round {now}."]


def render(page: dict[str, Any]) -> str:
    """The page's HTML. All text is escaped; only plots, which are drawn here, go in as they are."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawn"] = Markup
    return environment.get_template(TEMPLATE).render(page) + "\n"
