"""How corpora are laid out as they are distributed (docs/corpora.md): one file a corpus, named as `--corpus` names it.

A layout has two names:

    ROOT_HOLDS   what its root folder holds, for whoever left --root out
    list_clips   (root) -> list[ClipSource], those of one identity together; only names of files are read

A root that does not fit is refused with a `CorpusError` that says what was expected.
"""

import importlib
import pkgutil
from typing import Any


def available() -> list[str]:
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def layout(corpus: str) -> Any:
    """The module of a corpus that is `available`."""
    return importlib.import_module(f"{__name__}.{corpus.replace('-', '_')}")
