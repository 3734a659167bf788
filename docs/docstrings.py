"""Docstrings of this project as Markdown: what is aligned by hand, and what is typed at a prompt, becomes code.

A griffe extension: mkdocs.yml names it.
"""

import re
from typing import Any

import griffe

_ALIGNED = re.compile(r"\S {2,}\S|^ ", re.MULTILINE)


class AsMarkdown(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Called by griffe for every module, class, function and attribute that it has read."""
        if isinstance(obj, griffe.Object) and obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """Paragraphs with columns or indented lines, and examples with `>>>`, in fences; others as they are."""
    blocks = [_fenced(block) for block in re.split(r"\n\s*\n", docstring)]
    # Neighbours of one kind are one piece of code.
    return "\n\n".join(blocks).replace("\n```\n\n```text\n", "\n\n").replace("\n```\n\n```pycon\n", "\n\n")


def _fenced(block: str) -> str:
    if block.lstrip().startswith(">>>"):
        return f"```pycon\n{block}\n```"
    if _ALIGNED.search(block) and not re.match(r"[-*] ", block):
        return f"```text\n{block}\n```"
    # What is no code must not be read as HTML.
    parts = block.split("`")
    return "`".join(part.replace("<", "&lt;") if index % 2 == 0 else part for index, part in enumerate(parts))
