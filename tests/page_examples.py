"""The Python blocks of docs/extending.md and the other pages, as files that can be imported."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def example(page: str, part: str) -> str:
    """The one Python block of a page whose title, or else whose text, holds `part`."""
    blocks = re.findall(r"^```python([^\n]*)\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)
    found = [text for title, text in blocks if part in title] or [text for _, text in blocks if part in text]
    assert len(found) == 1, f"{page}: {len(found)} blocks with {part}"
    return found[0]


def install(path: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Puts an example's file where its title says, as far as imports can tell, and imports it; it lies in `folder`."""
    package = importlib.import_module(path.rpartition("/")[0].replace("/", "."))
    (folder / Path(path).name).write_text(example("extending.md", path), encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    name = f"{package.__name__}.{Path(path).stem}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, module)
    return module
