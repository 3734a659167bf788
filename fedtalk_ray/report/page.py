"""`fedtalk report`: a run as one HTML page that opens from disk and asks no network for anything.

What the page shows is collected here as plain data; `page.html.j2` lays it out and escapes it. The page forbids itself
any connection, by a content security policy.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedtalk_ray import __version__
from fedtalk_ray.errors import RunError
from fedtalk_ray.outputs import new_file
from fedtalk_ray.report import sections
from fedtalk_ray.report.facts import key_figures, read_facts, sentence
from fedtalk_ray.report.metrics import DOWN, ONE, UP, read_metrics, tables_of_groups
from fedtalk_ray.report.videos import make_videos, open_people
from fedtalk_ray.report.warnings import warnings_of
from fedtalk_ray.runs.folder import RunFolder

TEMPLATE = "page.html.j2"


def write_report(run: Path, out: Path | None = None, *, client: str | None = None, metrics: Path | None = None) -> Path:
    """Writes the page (RUN/report.html where `out` is None) and returns its place.

    client: whose face and adapter are shown too. metrics: what `fedtalk evaluate` wrote; None takes RUN/metrics.json
    where there is one. Raises `UserError`s; then there is no page, or the one that was there before.
    """
    folder = RunFolder(run)
    out = out or folder.report
    text = render(collect(folder, client, metrics))
    with new_file(out) as place:
        place.write_text(text, encoding="utf-8")
    return out


def collect(run: RunFolder, client: str | None, metrics: Path | None) -> dict[str, Any]:
    """Everything that the page shows, by the names that the template knows."""
    found = read_facts(run)
    measured = read_metrics(metrics or run.metrics) if metrics is not None or run.metrics.is_file() else None
    people, why = open_people(found.config)
    shards = quote(found.config.shards) if people else "SHARDS"
    command = f"fedtalk evaluate --run {quote(str(run.path))} --shards {shards} --out {quote(str(run.metrics))}"
    return {
        "name": run.path.resolve().name,
        "sentence": sentence(found, people.manifest if people else None),
        "key_figures": key_figures(found),
        "warnings": warnings_of(found) + outdated(run, measured),
        "videos": make_videos(run, people, why, client),
        "measured": measured,
        "tables": tables_of_groups(measured) if measured else [],
        "arrows": {"up": UP, "down": DOWN, "one": ONE},
        "command": command,
        "sections": [
            sections.convergence(found),
            sections.weights(found),
            sections.jitter(measured, command),
            sections.privacy(found),
            sections.attacks(found, read_audit(run)),
            sections.communication(found),
        ],
        "yaml": found.yaml,
        "versions": {
            "fedtalk_ray": __version__,
            "ray": version("ray"),
            "torch": version("torch"),
            "Python": platform.python_version(),
        },
    }


def outdated(run: RunFolder, measured: dict[str, Any] | None) -> list[str]:
    """A warning where the figures are those of an older model than the one that is shown."""
    after, now = (measured or {}).get("after_round"), run.released_round()
    if after is None or now is None or after == now:
        return []
    return [f"Figures of another model: the table and the jitter are of round {after}, the videos of round {now}."]


def read_audit(run: RunFolder) -> dict[str, Any] | None:
    """What the last audit found, None where there was none. Raises `RunError` for a damaged file."""
    path = run.audit_results
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for outcome in found["outcomes"]:
            outcome["attack"], outcome["figures"], outcome["knows"]
        found["failures"], found["round"], found["mode"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error!r}); `fedtalk audit {run.path}` writes it again") from error
    return dict(found)


def render(page: dict[str, Any]) -> str:
    """The page's HTML. All text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(page) + "\n"
