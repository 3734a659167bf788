"""The documentation: links, commands, options and settings that exist, and examples that run."""

import ast
import functools
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import markdown
import pytest
import typer
import yaml
from pydantic import Field

from docs import configuration, docstrings, hooks
from fedtalk_ray.commands.cli import app
from fedtalk_ray.config import parse_config
from fedtalk_ray.recipe import Section, StrategyConfig
from fedtalk_ray.settings import TrainConfig
from tests.page_examples import example, install

FENCE = re.compile(r"^ *```[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'^```python title="([^"]+)"$', re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
WHERE = re.compile(r"^\| (.+) \| `([^`]+)` \| `([^`]+)` \|$", re.MULTILINE)
"""A row of CONTRIBUTING's table: to change this, open that file, look for this name."""

DOCS = Path(hooks.__file__).parent
ROOT = DOCS.parent
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
ALL = [*(f"docs/{page}" for page in PAGES), "README.md", "CONTRIBUTING.md", "cluster/README.md"]


def text_of(path: str) -> str:
    """A page by its path in the repository, filled in as mkdocs does it."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return hooks.filled(text) if path.startswith("docs/") else text


def defined_in(path: Path) -> set[str]:
    """The names that a module itself defines; it may also import others."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return names


def test_the_table_of_what_to_open_names_files_that_define_it() -> None:
    rows = WHERE.findall(text_of("CONTRIBUTING.md"))
    assert rows and len({path for _, path, _ in rows}) == len(rows)
    for change, path, name in rows:
        assert name in defined_in(ROOT / path), f"to change {change}: {path} defines no {name}"


# Pages, links and anchors


@functools.cache
def anchors(page: str) -> set[str]:
    """What `page.md#...` may name. Objects of the Python API are anchors by their dotted names."""
    text = text_of(f"docs/{page}")
    html = markdown.markdown(text, extensions=["toc", "attr_list", "def_list", "tables", "pymdownx.superfences"])
    found = set(re.findall(r'id="([^"]+)"', html))
    for module in re.findall(r"^::: (\S+)$", text, re.MULTILINE):
        path = ROOT / module.replace(".", "/")
        names = defined_in(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
        found |= {module, *(f"{module}.{name}" for name in names)}
    return found


def broken_links(text: str, path: str) -> list[str]:
    """The relative links of a page that lead nowhere; code is no link."""
    broken = []
    for target in LINK.findall(SPAN.sub("", FENCE.sub("", text))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / path).parent / name if name else ROOT / path
        if not file.exists() or (anchor and anchor not in anchors(file.resolve().relative_to(DOCS).as_posix())):
            broken.append(target)
    return broken


@pytest.mark.parametrize("path", ALL)
def test_every_link_leads_somewhere(path: str) -> None:
    assert broken_links(text_of(path), path) == []


def test_a_broken_link_is_found() -> None:
    text = "[a](none.md) [b](extending.md#none) [c](extending.md#a-corpus) [d](https://x.y) `[e](none.md)` [f](#none)"
    assert broken_links(text, "docs/index.md") == ["none.md", "extending.md#none", "#none"]


# Commands and settings


GROUPS = ("authority", "privacy", "site")
"""Commands that hold others."""

SECTIONS = configuration.sections(TrainConfig)
SETTINGS = {
    f"{section}.{key}".strip(".") for section, model in [("", TrainConfig), *SECTIONS] for key in model.model_fields
}
NO_SETTINGS = ("server.apply", "server.collect", "server.key")
"""Ray's names of calls, and a file."""


@functools.cache
def commands() -> dict[str, set[str]]:
    """The options of every command, by its words, as in "privacy plan"."""
    found: dict[str, click.Command] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {})
        found |= {f"{name} {word}": each for word, each in inner.items()} or {name: command}
    return {
        name: {"--help", *(option for parameter in command.params for option in parameter.opts)}
        for name, command in found.items()
    }


def wrong_words(text: str) -> list[str]:
    """Commands, options and settings that a page names and that do not exist."""
    known, wrong = commands(), []
    spans = SPAN.findall(FENCE.sub("", text))
    for line in [*spans, *(line for block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines())]:
        for words in re.findall(r"(?:^|[\s/])fedtalk ([a-z][^;#]*)", line):
            first, *rest = words.split()
            # A job is a command behind a command: options of both may follow.
            names = [first, rest[0]] if first == "submit" and rest else [first]
            options: set[str] = set()
            for name in names:
                name = f"{name} {rest[0]}" if name in GROUPS and rest else name
                if name in known:
                    options |= known[name]
                elif name not in (*GROUPS, "TASK"):
                    wrong.append(f"fedtalk {name}")
            wrong += [f"fedtalk {first} {word}" for word in rest if word.startswith("--") and word not in options]
            if {"train", "serve", "compare"} & set(names):
                keys = [word.strip("'").partition("=")[0] for word in rest if re.match(r"'?[a-z_.0-9]+=", word)]
                wrong += [f"{first} {key}=" for key in keys if key not in SETTINGS and key != "key"]
        if line.startswith("--") and line.split()[0] not in set().union(*known.values()):
            wrong.append(line)
    for span in spans:
        # A dotted name below a section is a setting, or a module of the package.
        name = re.match(r"[a-z]+(?:\.[a-z_0-9]+)+(?=$|[:=])", span)
        if name and name[0].partition(".")[0] in dict(SECTIONS) and name[0] not in {*SETTINGS, *NO_SETTINGS}:
            module = ROOT / "fedtalk_ray" / name[0].replace(".", "/")
            wrong += [] if module.with_suffix(".py").exists() or name[0].endswith((".py", ".md")) else [name[0]]
    return wrong


@pytest.mark.parametrize("path", ALL)
def test_a_page_names_commands_options_and_settings_that_exist(path: str) -> None:
    assert wrong_words(text_of(path)) == []


def test_a_wrong_command_is_found() -> None:
    text = (
        "`fedtalk trian x` `--nothing` `fedtalk privacy plan --clients 3 --noise 1` `fedtalk train C local.stepz=3`\n"
        "`privacy.epsilon=8` `privacy.epsilom` `privacy.ledger` `server.key`\n"
        "```\nfedtalk prepare --corpus grid \\\n  --max-clip 3  # --no\nfedtalk train c.yaml 'local.los=1'\n```\n"
    )
    assert wrong_words(text) == [
        *("fedtalk trian", "--nothing", "fedtalk privacy --noise", "train local.stepz=", "fedtalk prepare --max-clip"),
        *("train local.los=", "privacy.epsilom"),
    ]


# The configuration's page, and what else the site is made of


class Inner(Section):
    """The inner one."""

    share: float | None = Field(None, gt=0, le=1)
    """Of <all>, `a < b`."""


class Outer(Section):
    """The outer one."""

    count: int = Field(ge=1)
    """How many,
    in all."""
    inner: Inner = Inner()


def test_a_reference_by_hand() -> None:
    assert configuration.reference(Outer) == (
        "The outer one.\n\n"
        "`count`{: #count }: whole number, required, ≥\N{NO-BREAK SPACE}1\n:   How many,\n    in all.\n\n"
        "Sections:\n\n- [`inner`](#inner): The inner one.\n\n"
        "## inner {: #inner }\n\nThe inner one.\n\n"
        "`inner.share`{: #inner.share }: number or `null`, default `null`, >\N{NO-BREAK SPACE}0, ≤\N{NO-BREAK SPACE}1\n"
        ":   Of &lt;all>, `a < b`."
    )
    assert configuration.defaults(Outer) == "count:  # required\ninner:\n  share: null"


def test_every_setting_is_described_on_the_page() -> None:
    assert anchors("configuration.md") >= SETTINGS


def test_the_defaults_are_a_configuration_that_changes_nothing() -> None:
    tree = yaml.safe_load(configuration.defaults(TrainConfig))
    needed = {"run": "r", "shards": "s", "pretrained": "p"}
    assert parse_config(tree | needed, "page") == parse_config(needed, "bare")


def test_docstrings_become_markdown() -> None:
    assert docstrings.as_markdown("One `a < b`.\n\nSee <x>.") == "One `a < b`.\n\nSee &lt;x>."
    assert docstrings.as_markdown("Layout:\n\n    A/b\n\nEnd.") == "Layout:\n\n```text\n    A/b\n```\n\nEnd."


@pytest.mark.nightly
def test_the_site_is_built_without_a_warning_and_asks_nobody(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert pages.keys() == {"404.html", *(page.removesuffix(".md") + ".html" for page in PAGES)}
    fetched = r'<(?:script|img|link rel="(?:stylesheet|icon|preconnect)")[^>]*(?:src|href)="(?:https?:)?//[^"]*"'
    assert [found for text in pages.values() for found in re.findall(fetched, text)] == []
    assert 'id="fedtalk_ray.privacy.shamir' in pages["reference/privacy.html"]


# Examples


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    return lambda path: install(path, tmp_path, monkeypatch)


@pytest.mark.parametrize("path", ALL)
def test_what_a_page_imports_exists(path: str) -> None:
    """Except from the files that the page itself tells to write (the titled blocks)."""
    text = text_of(path)
    own = {title.removesuffix(".py").replace("/", ".") for title in TITLE.findall(text)}
    for block in re.findall(r"^```python[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module not in own:
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_the_configuration_of_the_quickstart_is_one() -> None:
    (block,) = re.findall(r'^```yaml title="mine.yaml"\n(.*?)^```$', text_of("docs/quickstart.md"), re.M | re.S)
    assert parse_config(yaml.safe_load(block), "mine.yaml").pretrained == "models/mine"


def test_the_strategy_of_the_page(installed) -> None:
    from fedtalk_ray.federation.strategies import load_strategy

    installed("fedtalk_ray/federation/strategies/tempered.py")
    strategy = load_strategy(StrategyConfig(name="tempered", alpha=0.7, mu=0.3))
    assert (strategy.score_alpha, strategy.proximal) == (0.7, 0.3)
    weights = [strategy.weight(*client) for client in ((400, 1.0), (100, 0.5), (900, 0.0))]
    assert weights == pytest.approx([20, 5.5, 3])
    with pytest.raises(ValueError, match="got none"):
        strategy.weight(1, None)


def test_the_corpus_of_the_page(installed, tmp_path: Path) -> None:
    from fedtalk_ray.corpora import listing as corpora

    installed("fedtalk_ray/corpora/layouts/studio.py")
    root = tmp_path / "studio"
    for name in ("session2/ann_002.mov", "session1/bob_001.mov", "session1/ann_001.mov", "session1/ann_001.wav"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "test.txt").write_text("bob\n")
    sources = corpora.list_corpus("studio", root)
    assert [(source.identity, source.clip, source.held_out) for source in sources] == [
        ("ann", "session1-001", False),
        ("ann", "session2-002", False),
        ("bob", "session1-001", True),
    ]
    assert [source.sound for source in sources] == [str(root / "session1/ann_001.wav"), None, None]
    assert corpora.own_test_set(sources) == ["bob"]
    with pytest.raises(corpora.CorpusError, match=f"but {root} does: give --root {root}"):
        corpora.list_corpus("studio", root / "session1")
    (root / "session2" / "nobody.mov").write_bytes(b"")
    with pytest.raises(corpora.CorpusError, match=r"nobody.mov is not named <speaker>_<take>.mov"):
        corpora.list_corpus("studio", root)


def test_the_backbone_of_the_page(installed, make_shards, tmp_path: Path) -> None:
    """Made as the page says, and pretrained; `tests/slow/training/test_backbones.py` takes it through the rest."""
    import torch

    from fedtalk_ray.model.adapters import with_adapters
    from fedtalk_ray.model.pipeline import load_pipeline
    from fedtalk_ray.training.pretrain import pretrain

    shards, untrained = tmp_path / "shards", tmp_path / "untrained"
    make_shards(shards, {"s1": [30, 30], "s2": [30, 30]})
    module = installed("fedtalk_ray/model/transformer_denoiser.py")
    script = example("extending.md", "untrained_pipeline(")
    for written, place in (("shards/grid", shards), ("models/transformer-untrained", untrained)):
        assert written in script
        script = script.replace(written, str(place))
    exec(compile(script, "extending.md", "exec"), {})

    fresh = load_pipeline(str(untrained)).denoiser.eval()
    assert type(fresh) is module.TransformerDenoiser
    assert (fresh.config.latent_channels, fresh.config.latent_size) == (16, 8)
    inputs = torch.randn(2, 8, 16, 8, 8), torch.tensor([3, 900]), torch.randn(2, 8, 44, 40), torch.randn(2, 16, 8, 8)
    # As built, its output layer is zero: what is left is the motion that the sound suggests.
    assert torch.equal(fresh(*inputs), fresh.speech_motion(inputs[2]))
    assert pretrain(shards, tmp_path / "model", minutes=9, steps=2, start=str(untrained)).steps == 2
    trained = load_pipeline(str(tmp_path / "model")).denoiser
    adapted = with_adapters(trained, 4, 8.0, 2).eval()
    with torch.no_grad():
        before = adapted(*inputs)
        for name, parameter in adapted.named_parameters():
            if "blocks" in name and ".lora_B." in name:
                parameter += 0.1
        assert not torch.equal(adapted(*inputs), before)
