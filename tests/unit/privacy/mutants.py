"""The clients' code with some of its rules taken out, to see that a test which tries to break them notices."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from fedtalk_ray.privacy import secure_client
from fedtalk_ray.privacy.secure_client import SecureClient

Change = tuple[str, str]
"""What stands in a module's source, once, and what to put there."""


def altered(*changes: Change) -> type[SecureClient]:
    """A client with some rules taken out or put back as they were."""
    path = Path(str(secure_client.__file__))
    source = path.read_text()
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    made = ModuleType("altered")
    exec(compile(source, str(path), "exec", dont_inherit=True), vars(made))
    found: type[SecureClient] = made.SecureClient
    return found


def read_rules(text: str) -> dict[str, tuple[list[str], list[Change]]]:
    """Rules as `name | attack; attack` and below each, indented, what is changed: `old => new`."""
    rules: dict[str, tuple[list[str], list[Change]]] = {}
    for line in filter(str.strip, text.splitlines()):
        if not line.startswith(" "):
            name, _, attacks = line.partition(" | ")
            rules[name] = [each for each in attacks.split("; ") if each], []
        else:
            old, _, new = line.strip().replace("\\n", "\n").partition(" => ")
            rules[name][1].append((old, new))
    return rules
