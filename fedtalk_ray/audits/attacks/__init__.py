"""The attacks, one file each, named as `fedtalk audit --only` names it.

An attack measures what an attacker gets (`attack.Figure`) and says which promises it found broken (`Outcome.broken`).
Its module has four names:

    ORDER    when it runs among the others: cheap ones that break promises come first
    TITLE    what it is after, in a few words, for reports
    KNOWS    one sentence: what the attacker is assumed to know or to hold
    attack   (subject, effort) -> Outcome
"""

import importlib
import pkgutil
from types import ModuleType

from fedtalk_ray.errors import RunError


def available() -> list[str]:
    """All attacks, in the order in which they run."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(names, key=lambda name: int(_module(name).ORDER))


def load_attack(name: str) -> ModuleType:
    """The module of an attack. Raises `RunError` for an unknown name."""
    known = available()
    if name not in known:
        raise RunError(f"attack {name!r} is unknown; known: {', '.join(known)}")
    return _module(name)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
