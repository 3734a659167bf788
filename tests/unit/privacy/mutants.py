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
    found: type[SecureClient] = remade(secure_client, *changes).SecureClient
    return found


def remade(module: ModuleType, *changes: Change, **put: object) -> ModuleType:
    """A module whose source is changed. put: names in it that stand for something else."""
    path = Path(str(module.__file__))
    source = path.read_text()
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    made = ModuleType("altered")
    exec(compile(source, str(path), "exec", dont_inherit=True), vars(made))
    vars(made).update(put)
    return made
