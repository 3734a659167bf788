"""metrics.json as a report shows it: checked, its metrics named in words, with which way is better."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fedtalk_ray.errors import RunError
from fedtalk_ray.evaluation.evaluate import AUTOENCODER, COPY, GENERATED, group_tables, unusual_sampling
from fedtalk_ray.evaluation.evaluate import DECIMALS as PRINTED
from fedtalk_ray.evaluation.frechet import FID, FRECHET_LITE0, OF_MOUTHS
from fedtalk_ray.evaluation.held_out import SEEN
from fedtalk_ray.evaluation.perceptual import LPIPS, ST_LPIPS

UP, DOWN, ONE = "↑", "↓", "→ 1"
"""Higher is better, lower is better, and nearest to 1 is best."""

METRICS: dict[str, tuple[str, str]] = {
    "psnr": ("PSNR, dB", UP),
    "mouth_psnr": ("PSNR of the mouth, dB", UP),
    "ssim": ("SSIM", UP),
    "mouth_sharpness": ("sharpness of the mouth / truth's", ONE),
    "seam": ("slope across the border of what is painted / truth's", ONE),
    LPIPS: ("LPIPS", DOWN),
    ST_LPIPS: ("ST-LPIPS", DOWN),
    FID: ("FID", DOWN),
    FRECHET_LITE0: ("Fréchet distance (EfficientNet-Lite0)", DOWN),
    FID + OF_MOUTHS: ("FID of mouths", DOWN),
    FRECHET_LITE0 + OF_MOUTHS: ("Fréchet distance of mouths (EfficientNet-Lite0)", DOWN),
    "jitter_ratio": ("jitter / truth's", ONE),
    "lip_correlation": ("lip correlation, whole clip", UP),
    "lip_correlation_spoken": ("lip correlation, while somebody speaks", UP),
    "lip_gap": ("lip correlation, gap to the other sound", UP),
    "lip_offset_within_2": ("share of clips with lips within 2 frames", UP),
    "identity": ("identity, same moment", UP),
    "identity_other_clip": ("identity, another real clip", UP),
    "frames_per_second": ("frames made a second", UP),
}
"""Metric -> its words, and which way is better. A metric that is not here is shown under its own name."""

DISTANCES = [name + part for name in (FID, FRECHET_LITE0) for part in ("", OF_MOUTHS)]
DECIMALS = PRINTED | dict.fromkeys(DISTANCES, 1) | dict.fromkeys(("jitter_ratio", "mouth_sharpness", "seam"), 2)
"""Digits after the point where three would say more than is known."""

JITTER = "jitter_ratio"
SHOWN_ROWS = (GENERATED, COPY, AUTOENCODER)
"""The rows whose jitter is plotted."""

Figures = dict[str, float | None]


class _Clip(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)
    group: str
    identity: str
    clip: str
    rows: dict[str, Figures]


class _Metrics(BaseModel):
    """What `evaluate.evaluate_run` returns; what it may tell beyond that is left alone."""

    model_config = ConfigDict(allow_inf_nan=False)
    run: str
    after_round: int | None = None
    shards: str = ""
    split: str
    samples: int
    sampling: dict[Literal["steps", "guidance"], float] = {}
    clips: dict[str, int]
    identity_adapters: int
    groups: dict[str, dict[str, Figures]]
    half_widths_95: dict[str, dict[str, Figures]]
    per_clip: list[_Clip]

    @model_validator(mode="after")
    def _groups_agree(self) -> "_Metrics":
        for group, rows in self.groups.items():
            missing = set(rows) - set(self.half_widths_95.get(group, {}))
            if group not in self.clips or missing:
                raise ValueError(f"group {group!r} has no number of clips, or no half widths for one of its rows")
        return self


@dataclass(frozen=True)
class Line:
    """One metric. better: an arrow, or nothing where that is not known."""

    metric: str
    better: str
    cells: list[str]


@dataclass(frozen=True)
class Table:
    """below: in words, the metrics in which the model does worse than copying the first frame."""

    title: str
    columns: list[str]
    lines: list[Line]
    below: list[str]


def read_metrics(path: Path) -> dict[str, Any]:
    """The result that `fedtalk evaluate` wrote. Raises `RunError` for anything else."""
    again = "write it again with `fedtalk evaluate`"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"metrics {path} cannot be read: {error.strerror}; {again}") from error
    except ValueError as error:
        raise RunError(f"metrics {path} is not JSON ({error}); {again}") from error
    if not isinstance(tree, dict):
        raise RunError(f"metrics {path} holds a {type(tree).__name__} and no result; {again}")
    try:
        return _Metrics.model_validate(tree).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        message = first["msg"].removeprefix("Value error, ")
        raise RunError(f"metrics {path} has another shape ({where}: {message}); {again}") from error


def tables_of_groups(metrics: dict[str, Any]) -> list[Table]:
    """The figures that `fedtalk evaluate` prints, one table a group."""
    tables = []
    for table in group_tables(metrics, DECIMALS):
        lines = []
        for name, cells in table.lines.items():
            words, better = METRICS.get(name, (name, ""))
            lines.append(Line(words, better, ["" if cell == "-" else cell for cell in cells]))
        clips = "1 clip: an example and no measurement" if table.clips == 1 else f"{table.clips} clips"
        own = ", with their own identity adapters" if table.group == SEEN and metrics["identity_adapters"] else ""
        title = f"{table.group.capitalize()} identities{own}, {clips}{unusual_sampling(metrics)}"
        tables.append(Table(title, table.columns, lines, worse_than_copying(metrics["groups"][table.group])))
    return tables


def worse_than_copying(rows: dict[str, Figures]) -> list[str]:
    """Metrics, in words, in which the generated clips are worse than the first frame repeated."""
    found = []
    for name, (words, better) in METRICS.items():
        made, copied = (rows.get(row, {}).get(name) for row in (GENERATED, COPY))
        if made is None or copied is None:
            continue
        if (better == UP and made < copied) or (better == DOWN and made > copied):
            found.append(words)
    return found


def jitter_of_clips(metrics: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """group -> row -> the jitter ratio of each clip; clips whose ratio is not known are left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for clip in metrics["per_clip"]:
        for row in SHOWN_ROWS:
            value = clip["rows"].get(row, {}).get(JITTER)
            if value is not None and math.isfinite(value):
                found.setdefault(clip["group"], {}).setdefault(row, []).append(value)
    return found
