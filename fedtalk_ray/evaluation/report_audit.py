"""The report's section on attacks: what `fedtalk audit` found, or how to find out."""

import json
from pathlib import Path
from shlex import quote
from typing import Any

from fedtalk_ray.errors import RunError
from fedtalk_ray.evaluation.audits.attack import RESULTS
from fedtalk_ray.evaluation.report_sections import Section

TITLES = {
    "wire": "all that the server saw",
    "charges": "the account",
    "canaries": "made-up clients",
    "one_shot": "made-up clients, estimated",
    "membership": "who was a client",
    "reidentification": "whose update it is",
    "inversion": "a face out of an update",
    "identity_leakage": "faces in the shared adapter",
}
COLUMNS = ("attack", "what the attacker gets", "value", "95% interval", "by chance", "claim")


def read_audit(run: Path) -> dict[str, Any] | None:
    """RUN/audit/audit.json, None where there is none. Raises `RunError` for a damaged one."""
    path = run / RESULTS
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for outcome in found["outcomes"]:
            outcome["attack"], outcome["figures"], outcome["knows"]
        found["failures"], found["round"], found["mode"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error!r}); `fedtalk audit {run}` writes it again") from error
    return dict(found)


def attacks(run: Path, after: int, found: dict[str, Any] | None) -> Section:
    """after: the last round of the run. found: of `read_audit`."""
    section = Section("Attacks")
    if found is None:
        section.sentences.append(f"Not attacked yet: fedtalk audit {quote(str(run))} does it.")
        return section
    if found["failures"]:
        section.sentences += [f"BROKEN PROMISE: {line}" for line in found["failures"]]
    elif found["mode"] == "no privacy":
        section.sentences.append("This run promises nothing; the attacks show what it would have to hide.")
    else:
        section.sentences.append("No promise was found broken.")
    if found["round"] != after:
        section.sentences.append(f"The attacks were on round {found['round']}, and the run has gone on to {after}.")
    section.sentences.append(
        f"What attackers got from this run ({found['mode']}), each with what its attacker is assumed to hold: "
        "docs/privacy.md says what that is, and audit.json repeats it."
    )
    section.columns = COLUMNS
    section.rows = [
        (TITLES.get(outcome["attack"], outcome["attack"]), figure["name"], *cells(figure))
        for outcome in found["outcomes"]
        for figure in outcome["figures"]
    ]
    return section


def cells(figure: dict[str, Any]) -> tuple[str, str, str, str]:
    """value, interval, chance, claim; empty where there is none."""
    value = "no number" if figure["value"] is None else f"{figure['value']:.3g}"
    known = figure["low"] is not None and figure["high"] is not None
    bounds = f"{figure['low']:.2g} to {figure['high']:.2g}" if known else ""
    chance, claim = ("" if figure[name] is None else f"{figure[name]:.3g}" for name in ("chance", "claim"))
    return value, bounds, chance, claim
