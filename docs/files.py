"""The index of the package's files in README: a line each, from the first sentence of the file's docstring.

python -m docs.files     writes it anew; a test holds README to it
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- files: python -m docs.files -->\n", "<!-- end of files -->\n"


def index(root: Path = ROOT) -> str:
    """A list item for every file of `fedtalk_ray/` that holds code, by folder; the package's top comes first."""
    package = root / "fedtalk_ray"
    lines: list[str] = []
    for folder in sorted({path.parent for path in package.rglob("*.py")}):
        found = [(path.name, sentence) for path in sorted(folder.glob("*.py")) if (sentence := first_sentence(path))]
        if found:
            lines.append(f"\n**`{folder.relative_to(root).as_posix()}/`**\n\n")
            lines += [f"- `{name}` {sentence}\n" for name, sentence in found]
    return "".join(lines) + "\n"


def first_sentence(path: Path) -> str:
    """Of the module's docstring, without what stands below it; empty for a file without any."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.?]) (?=[A-Z`])", paragraph)[0].rstrip(".")


def filled(readme: str, root: Path = ROOT) -> str:
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + index(root) + END + after


if __name__ == "__main__":
    place = ROOT / "README.md"
    place.write_text(filled(place.read_text(encoding="utf-8")), encoding="utf-8")
