"""The weights that ship inside the package, and where a model that is asked for by name lies."""

from pathlib import Path

EMBEDDED = "fedtalk-tiny"
"""The default model: made by `fedtalk pretrain` from drawn faces alone; its model card says how."""

_WEIGHTS = Path(__file__).parent.parent / "weights"


def find_model(source: str | Path) -> Path:
    """The folder that `source` names: the package's own for "fedtalk-tiny", unless such a folder lies here."""
    path = Path(source)
    return _WEIGHTS / EMBEDDED if str(source) == EMBEDDED and not path.exists() else path
