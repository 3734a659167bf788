"""`fedtalk audit`: every attack on one run, one table, and a verdict.

RUN/audit/audit.json   all figures, what each attacker knows, what was found broken; of attacks that were not made this
                       time what they found before on the same round
RUN/audit/*.png        scores of members and outsiders, canaries, and the picture that was recovered
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing

from fedtalk_ray.audits.attack import Figure, NotFinite, Outcome, finite
from fedtalk_ray.audits.attacks import available, load_attack
from fedtalk_ray.audits.bounds import auditing
from fedtalk_ray.audits.effort import FAST, FULL, Effort
from fedtalk_ray.audits.subject import Subject, mode
from fedtalk_ray.errors import RunError, UserError
from fedtalk_ray.outputs import new_file
from fedtalk_ray.plotting import COLOURS, save_figure
from fedtalk_ray.privacy.protocol import Aborted
from fedtalk_ray.runs.folder import RunFolder


class AuditFailed(RunError):
    """A promise is broken, or an attack could not be measured."""


def audit(run: Path, *, fast: bool = False, only: Sequence[str] = ()) -> dict[str, Any]:
    """Attacks a run, writes RUN/audit and returns what `audit.json` holds.

    only: attacks by name; all where it is empty. Raises `RunError` for a run that cannot be audited, and `AuditFailed`
    once everything is written, where a promise is broken or a score is no finite number, then or in what stands.
    """
    started = monotonic()
    auditing()
    attacks = [load_attack(name) for name in only or available()]
    effort = FAST if fast else FULL
    subject = Subject(RunFolder(run), effort)
    folder = subject.run
    outcomes = [attempt(module, subject, effort) for module in attacks]
    made = {outcome.attack for outcome in outcomes}
    result = summary(subject, outcomes, effort) | {"seconds": round(monotonic() - started, 1)}
    result = with_standing(result, folder.audit_results)
    for outcome in outcomes:
        # Pictures of a client lie in the client's folder.
        plot_outcome(outcome, folder.audit, folder.client(outcome.whose).audit if outcome.pictures else None)
    with new_file(folder.audit_results) as place:
        place.write_text(json.dumps(result, indent=1, allow_nan=False), encoding="utf-8")
    print(table(outcomes, result))
    if standing := [outcome["attack"] for outcome in result["outcomes"] if outcome["attack"] not in made]:
        print(f"as found before, on the same round: {', '.join(standing)}")
    print(f"audit: {folder.audit_results} ({result['seconds']:.0f} s)")
    for outcome in outcomes:
        if outcome.pictures:
            print(f"what was recovered of {outcome.whose}: {folder.client(outcome.whose).audit}")
    if result["failures"]:
        raise AuditFailed("the audit failed: " + "; ".join(result["failures"]))
    return result


def attempt(module: ModuleType, subject: Subject, effort: Effort) -> Outcome:
    """What the attack brought back. One that could not be tried fails the audit, and the others go on."""
    try:
        outcome: Outcome = module.attack(subject, effort)
    except (UserError, Aborted, NotFinite) as error:
        name = module.__name__.rpartition(".")[2]
        outcome = Outcome(name, module.KNOWS, broken=[f"could not be tried: {' '.join(str(error).split())}"])
    return outcome


def summary(subject: Subject, outcomes: list[Outcome], effort: Effort) -> dict[str, Any]:
    """What audit.json holds."""
    privacy, claim = subject.config.privacy, None
    if privacy.mechanism != "none":
        spent = subject.ledger.spent(privacy.delta, privacy.participation_cap)
        claim = {name: finite(value) for name, value in asdict(spent).items()}
    return {
        "run": str(subject.run.path),
        "mode": mode(subject.config),
        "round": subject.rounds,
        "members": len(subject.members),
        "outsiders": len(subject.outsiders),
        "claim": claim,
        "effort": asdict(effort),
        "outcomes": [outcome.as_json() | {"title": load_attack(outcome.attack).TITLE} for outcome in outcomes],
        "failures": [line for outcome in outcomes for line in outcome.failures()],
    }


def with_standing(result: dict[str, Any], path: Path) -> dict[str, Any]:
    """The result with what attacks that were not made this time found before, all in the order in which attacks run.

    path: of the audit.json that is to be replaced. What it found on another round is dropped; of a damaged one all is,
    and a line says so. `effort` becomes null where it was another one before.
    """
    new = {outcome["attack"]: outcome for outcome in result["outcomes"]}
    try:
        before: dict[str, Any] = {"outcomes": [], "round": 0}
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
        stands = {} if before["round"] != result["round"] else {each["attack"]: each for each in before["outcomes"]}
        stands = {name: each for name, each in stands.items() if name in available() and name not in new}
        for outcome in stands.values():
            # What the report reads of it: where that is missing, the file is damaged.
            _ = outcome["knows"], [figure["name"] for figure in outcome["figures"]], [*outcome["failures"]]
        effort = before["effort"] if stands else result["effort"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{path} was damaged ({error!r}); what attacks found before is dropped")
        return result
    outcomes = [(stands | new)[name] for name in available() if name in stands | new]
    return result | {
        "effort": effort if effort == result["effort"] else None,
        "outcomes": outcomes,
        "failures": [line for outcome in outcomes for line in outcome["failures"]],
    }


def table(outcomes: list[Outcome], result: dict[str, Any]) -> str:
    """What was found, a line a figure: the value with its interval, what guessing gives, what the accountant claims."""
    lines = [f"{result['run']}: {result['mode']}, after round {result['round']}"]
    if claim := result["claim"]:
        release, server = (told_epsilon(claim[view]) for view in ("release", "server"))
        lines.append(
            f"the accountant: epsilon {release} (release view), {server} (server view) at delta {claim['delta']:g}"
        )
    width = max((len(figure.name) for outcome in outcomes for figure in outcome.figures), default=0)
    for outcome in outcomes:
        lines += ["", f"{outcome.attack}: {outcome.knows}"]
        lines += [f"  {figure.name:<{width}}  {shown(figure)}" for figure in outcome.figures]
        lines += [f"  note: {note}" for note in outcome.notes]
        lines += [f"  BROKEN: {line.partition(': ')[2]}" for line in outcome.failures()]
    return "\n".join([*lines, ""])


def told_epsilon(value: float | None) -> str:
    """None, which JSON holds for it, is infinite."""
    return "infinite" if value is None else f"{value:.2f}"


def shown(figure: Figure) -> str:
    """One figure's value with whatever stands beside it."""
    line = f"{figure.value:8.3g}"
    if figure.low is not None and figure.high is not None:
        line += f"  [{figure.low:.3g}, {figure.high:.3g}]"
    if figure.chance is not None:
        line += f"  by chance {figure.chance:.3g}"
    return line + (f"  claimed {figure.claim:.3g}" if figure.claim is not None else "")


def plot_outcome(outcome: Outcome, folder: Path, private: Path | None) -> None:
    """FOLDER/<attack>.png with the scores of both groups, and PRIVATE/<attack>.png with pictures, where it has any.

    private: a folder of the client whom the pictures show.
    """
    known = {name: values for name, values in outcome.series.items() if len(values) and np.isfinite(values).all()}
    panels: dict[str, dict[str, list[float]]] = {}
    for name, values in known.items():
        what, _, who = name.rpartition(": ")
        panels.setdefault(what, {})[who] = values
    if panels:
        drawing = Drawing(figsize=(1 + 4 * len(panels), 3.5), layout="constrained")
        for axes, (what, groups) in zip(
            drawing.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), 20)
            for colour, (who, values) in zip(COLOURS, groups.items(), strict=False):
                axes.hist(values, edges, color=colour, alpha=0.55, density=True, label=f"{who} (n={len(values)})")
            axes.set(title=what, xlabel="score", ylabel="density")
            axes.legend(fontsize="small")
        save_figure(drawing, folder / f"{outcome.attack}.png")
    if outcome.pictures and private is not None:
        drawing = Drawing(figsize=(2.2 * len(outcome.pictures), 2.6), layout="constrained")
        for axes, (name, picture) in zip(
            drawing.subplots(1, len(outcome.pictures), squeeze=False)[0], outcome.pictures.items(), strict=True
        ):
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(name, fontsize="small")
            axes.axis("off")
        save_figure(drawing, private / f"{outcome.attack}.png")
