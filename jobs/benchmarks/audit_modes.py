"""Attacks x {no privacy, secure aggregation, differential privacy, both} over seeds, as one Markdown table.

python jobs/benchmarks/audit_modes.py --out runs/audit --seeds 0 1 2

Trains and audits what is missing under OUT, one process each, and goes on where it was stopped. The recipe is
jobs/configs/audit.yaml; `--fast` takes the fast form of the audit.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedtalk_ray.audits.attacks.inversion import CLEAR
from fedtalk_ray.audits.audit import told_epsilon
from fedtalk_ray.audits.effort import FAST, FULL
from fedtalk_ray.audits.views import ALL_BUT_ONE, SERVER
from fedtalk_ray.evaluation.statistics import interval
from fedtalk_ray.runs.folder import RunFolder

RECIPE = "jobs/configs/audit.yaml"

NOISE = ["privacy.epsilon=8", "privacy.clip_norm=1.0"]

MODES: dict[str, list[str]] = {
    "none": [],
    "secure": ["aggregation=secure"],
    "dp": ["privacy.mechanism=gaussian", *NOISE],
    "both": ["aggregation=secure", "privacy.mechanism=skellam", *NOISE],
}
"""mode -> settings over the recipe. Central noise has a trusted server, distributed noise has none."""

TITLES = {"none": "no privacy", "secure": "secure aggregation", "dp": "differential privacy", "both": "both"}

ROWS: tuple[tuple[str, str, str], ...] = (
    ("membership", "base-calibrated loss: AUC", "membership, AUC"),
    ("membership", "base-calibrated loss: TPR at 1% FPR", "membership, TPR at 1% FPR"),
    ("membership", "likelihood ratio: AUC", "membership by likelihood ratio, AUC"),
    ("inversion", f"cosine, {SERVER}", f"inversion by {SERVER}, cosine"),
    ("inversion", f"PSNR in dB, {SERVER}", f"inversion by {SERVER}, dB"),
    ("inversion", f"cosine, {ALL_BUT_ONE}", f"inversion by {ALL_BUT_ONE}, cosine"),
    ("reidentification", f"rank-1, {SERVER}", f"re-identification by {SERVER}, rank-1"),
    ("reidentification", f"rank-1, {ALL_BUT_ONE}", f"re-identification by {ALL_BUT_ONE}, rank-1"),
    ("canaries", "server view: epsilon at least, one run", "canaries, epsilon at least"),
    ("canaries", "server view: epsilon at least, one run, Gaussian-like noise", "canaries, the same for such noise"),
    ("server_saw", "largest correlation of a masked vector with its update", "correlation with what the server sees"),
    ("identity_leakage", "likeness gained, members - outsiders", "likeness gained, members - outsiders"),
)
"""attack, its figure, the row's title."""

ELSEWHERE = {
    f"cosine, {SERVER}": f"cosine, {CLEAR}",
    f"PSNR in dB, {SERVER}": f"PSNR in dB, {CLEAR}",
    f"cosine, {ALL_BUT_ONE}": f"cosine, {CLEAR}",
    "largest correlation of a masked vector with its update": "correlation of a chunk of one client with its true "
    "update",
}
"""What stands for a figure where nothing is hidden."""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/audit"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--fast", action="store_true")
    chosen = parser.parse_args(arguments)
    results: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for seed in chosen.seeds:
        for mode, settings in MODES.items():
            folder = RunFolder(chosen.out / f"{mode}-{seed}")
            run = folder.path
            if not folder.has_model():
                resume = ["--resume"] if folder.exists() else []
                fedtalk("train", chosen.recipe, f"run={run}", f"seed={seed}", *settings, *resume)
            found = read(folder.audit_results)
            effort = asdict(FAST if chosen.fast else FULL)
            # One of an older version lacks rows.
            if found is None or found["failures"] or found["effort"] != effort or not has_rows(found):
                fedtalk("audit", str(run), *(["--fast"] if chosen.fast else []))
                found = read(folder.audit_results)
            assert found is not None
            results[mode].append(found)
            print(table(results), flush=True)


def has_rows(found: dict[str, Any]) -> bool:
    return {attack for attack, *_ in ROWS} <= {outcome["attack"] for outcome in found["outcomes"]}


def read(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def fedtalk(*arguments: str) -> None:
    """One command in a process of its own; ends this one where it fails."""
    subprocess.run([sys.executable, "-m", "fedtalk_ray.commands.cli", *arguments], check=True)


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Rows of `ROWS`, a column a mode: the mean over its seeds, with Student's 95% interval from two on."""
    modes = [mode for mode, found in results.items() if found]
    lines = ["| attack | by chance | " + " | ".join(f"{TITLES[mode]} ({len(results[mode])})" for mode in modes) + " |"]
    lines.append("|---" * (len(modes) + 2) + "|")
    for attack, name, title in ROWS:
        figures = {mode: [figure for each in results[mode] if (figure := find(each, attack, name))] for mode in modes}
        chances = {figure["chance"] for found in figures.values() for figure in found} - {None}
        chance = f"{max(chances):.2g}" if chances else ""
        cells = [shown([figure["value"] for figure in figures[mode]]) for mode in modes]
        lines.append(f"| {title} | {chance} | " + " | ".join(cells) + " |")
    claims = [claim["claim"] for mode in modes for claim in results[mode][:1]]
    told = [told_epsilon(claim["server"]) if claim else "none" for claim in claims]
    return "\n".join([*lines, "| the accountant's epsilon, server view | | " + " | ".join(told) + " |", ""])


def find(result: dict[str, Any], attack: str, name: str) -> dict[str, Any] | None:
    """A figure by attack and name, or what stands for it."""
    for outcome in result["outcomes"]:
        if outcome["attack"] == attack:
            by_name = {figure["name"]: figure for figure in outcome["figures"]}
            found: dict[str, Any] | None = by_name.get(name) or by_name.get(ELSEWHERE.get(name, ""))
            return found
    return None


def shown(values: list[float]) -> str:
    if not values:
        return "-"
    found = interval(values)
    return f"{found.mean:.3g}" + (f" ± {found.half_width:.2g}" if found.half_width is not None else "")


if __name__ == "__main__":
    main(sys.argv[1:])
