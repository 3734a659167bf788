"""What mkdocs runs while it builds the site: it fills pages in that are made of other files of the repository."""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# mkdocs loads this file alone; the package beside it need not be installed.
sys.path[:0] = [path for path in [str(ROOT)] if path not in sys.path]

from docs.configuration import defaults, reference  # noqa: E402
from fedtalk_ray.config import TrainConfig  # noqa: E402

REFERENCE, DEFAULTS = "<!-- every setting -->", "<!-- all defaults -->"
_INCLUDED = re.compile(r"<!-- the text of (\S+) -->")
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
_FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page, before it is rendered."""
    return filled(markdown)


def filled(page: str) -> str:
    """The page with what its marks stand for."""
    page = page.replace(REFERENCE, reference(TrainConfig))
    page = page.replace(DEFAULTS, f"```yaml\n{defaults(TrainConfig)}\n```")
    return _INCLUDED.sub(lambda mark: included(mark[1]), page)


def included(path: str) -> str:
    """The text of a file of the repository for a page in docs/, without its first heading.

    A link to a page of docs/ leads there; one to any other file becomes the file's path, which a site has no page for.
    """
    text = re.sub(r"\A# .*\n+", "", (ROOT / path).read_text(encoding="utf-8"))
    # Code is left as it is.
    parts = _FENCED.split(text)
    return "".join(
        part if index % 2 else _LINK.sub(lambda link: _relinked(link, path), part) for index, part in enumerate(parts)
    )


def _relinked(link: re.Match[str], path: str) -> str:
    words, target = link[1], link[2]
    if re.match(r"[a-z]+:|#", target):
        return link[0]
    place, hash_sign, anchor = target.partition("#")
    place = posixpath.normpath(posixpath.join(posixpath.dirname(path), place))
    if place.startswith("docs/"):
        return f"[{words}]({place.removeprefix('docs/')}{hash_sign}{anchor})"
    return f"`{place}`" if words.strip("`") in (place, target) else f"{words} (`{place}`)"
