"""`fedtalk audit`: every attack on one run, one table, and a verdict.

RUN/audit/audit.json   all figures, what each attacker knows, what was found broken
RUN/audit/*.png        scores of members and outsiders, canaries, and the picture that was recovered
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any

from fedtalk_ray.audits.attack import FAST, FULL, Effort, Figure, NotFinite, Outcome, finite
from fedtalk_ray.audits.attacks import available, load_attack
from fedtalk_ray.audits.audit_plots import plot_outcome
from fedtalk_ray.audits.bounds import auditing
from fedtalk_ray.audits.subject import Subject, mode
from fedtalk_ray.errors import RunError, UserError
from fedtalk_ray.outputs import new_file
from fedtalk_ray.privacy.protocol import Aborted
from fedtalk_ray.runs.folder import RunFolder


class AuditFailed(RunError):
    """A promise is broken, or an attack could not be measured."""


def audit(run: Path, *, fast: bool = False, only: Sequence[str] = ()) -> dict[str, Any]:
    """Attacks a run, writes RUN/audit and returns what `audit.json` holds.

    only: attacks by name; all where it is empty. Raises `RunError` for a run that cannot be audited, and `AuditFailed`
    once everything is written, where a promise is broken or a score is no finite number.
    """
    started = monotonic()
    auditing()
    attacks = [load_attack(name) for name in only or available()]
    effort = FAST if fast else FULL
    subject = Subject(RunFolder(run), effort)
    folder = subject.run
    outcomes = [attempt(module, subject, effort) for module in attacks]
    result = summary(subject, outcomes, effort) | {"seconds": round(monotonic() - started, 1)}
    for outcome in outcomes:
        # Pictures of a client lie in the client's folder.
        plot_outcome(outcome, folder.audit, folder.client(outcome.whose).audit if outcome.pictures else None)
    with new_file(folder.audit_results) as place:
        place.write_text(json.dumps(result, indent=1, allow_nan=False), encoding="utf-8")
    print(table(outcomes, result))
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
        claim = {name: finite(value) for name, value in asdict(subject.ledger.spent(privacy.delta)).items()}
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
    told = f"{figure.value:8.3g}"
    if figure.low is not None and figure.high is not None:
        told += f"  [{figure.low:.3g}, {figure.high:.3g}]"
    if figure.chance is not None:
        told += f"  by chance {figure.chance:.3g}"
    return told + (f"  claimed {figure.claim:.3g}" if figure.claim is not None else "")
