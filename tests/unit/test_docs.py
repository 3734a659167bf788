"""The documentation: pages, links and commands that exist, settings without a gap, examples that run."""

import ast
import importlib
import os
import re
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import click
import markdown
import numpy as np
import pytest
import typer
import yaml
from pydantic import Field

from docs import configuration, docstrings, files, hooks
from fedtalk_ray.commands.cli import app
from fedtalk_ray.config import parse_config
from fedtalk_ray.recipe import Section, StrategyConfig
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from tests.page_examples import example, install

FENCE = re.compile(r"^ *```[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'^```python title="([^"]+)"$', re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")

DOCS = Path(hooks.__file__).parent
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
FRONT = ("README.md", "CONTRIBUTING.md", "cluster/README.md")


WHERE = re.compile(r"^\| (.+) \| `([^`]+)` \| `([^`]+)` \|$", re.MULTILINE)
"""A row of CONTRIBUTING's table: to change this, open that file, look for this name."""


def defined_in(path: Path) -> set[str]:
    """What a module itself defines or assigns; a name that it imports is not its own."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return names


def test_the_table_of_what_to_open_names_files_that_own_it(repository: Path) -> None:
    rows = WHERE.findall((repository / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(rows) >= 24
    assert len({path for _, path, _ in rows}) == len(rows), "one file answers one question"
    for change, path, name in rows:
        assert name in defined_in(repository / path), f"to change {change}: {path} defines no {name}"


def test_readme_lists_every_file_as_its_docstring_says(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert files.filled(readme, repository) == readme, "run python -m docs.files"
    for path in (repository / "fedtalk_ray").rglob("*.py"):
        holds_code = bool(ast.parse(path.read_text(encoding="utf-8")).body)
        assert bool(files.first_sentence(path)) == holds_code, f"{path} has no docstring"


# Pages, links and anchors


def entries(nav: Any) -> Iterator[str]:
    """The pages of mkdocs.yml's `nav`, whatever sections they stand in."""
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from entries(part)


def test_the_navigation_names_every_page_once(repository: Path) -> None:
    site = yaml.safe_load((repository / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(entries(site["nav"])) == PAGES


def anchors(page: str) -> set[str]:
    """What `page.md#...` may say. Objects of the Python API are anchors by their dotted names."""
    text = hooks.filled((DOCS / page).read_text(encoding="utf-8"))
    html = markdown.markdown(text, extensions=["toc", "attr_list", "def_list", "tables", "pymdownx.superfences"])
    found = set(re.findall(r'id="([^"]+)"', html))
    for module in re.findall(r"^::: (\S+)$", text, re.MULTILINE):
        path = DOCS.parent / module.replace(".", "/")
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        defined = re.findall(r"^(?:class|def) ([A-Za-z]\w*)", source.read_text(encoding="utf-8"), re.MULTILINE)
        found |= {module, *(f"{module}.{name}" for name in defined)}
    return found


def broken_links(text: str, folder: Path) -> list[str]:
    """The relative links of a page in `folder` that lead nowhere; code is no link."""
    broken = []
    for target in LINK.findall(SPAN.sub("", FENCE.sub("", text))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve()
        if not file.exists() or (anchor and anchor not in anchors(file.relative_to(DOCS).as_posix())):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    text = hooks.filled((DOCS / page).read_text(encoding="utf-8"))
    own = re.sub(r"\]\(#", f"]({Path(page).name}#", text)
    assert broken_links(own, (DOCS / page).parent) == []


def test_a_broken_link_is_found() -> None:
    text = "[a](none.md) [b](privacy.md#none) [c](privacy.md#who-sees-what) [d](https://x.y) `[e](none.md)`"
    assert broken_links(text, DOCS) == ["none.md", "privacy.md#none"]


@pytest.mark.parametrize("page", FRONT)
def test_every_link_of_the_repository_s_own_pages_leads_somewhere(page: str, repository: Path) -> None:
    assert broken_links((repository / page).read_text(encoding="utf-8"), (repository / page).parent) == []


# Commands


GROUPS = ("authority", "privacy", "site")
"""Commands that hold others."""


def commands() -> dict[str, click.Command]:
    """Every command by its words, as in "privacy plan"."""
    found: dict[str, click.Command] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {})
        found |= {f"{name} {word}": each for word, each in inner.items()} or {name: command}
    return found


def options_of(command: click.Command) -> set[str]:
    return {"--help", *(name for parameter in command.params for name in parameter.opts if name.startswith("--"))}


def wrong_commands(text: str) -> list[str]:
    """What a page says of the command that is not so: unknown commands, options and settings."""
    known, wrong = commands(), []
    settings = {
        f"{section}.{key}".strip(".")
        for section, model in [("", TrainConfig), *configuration.sections(TrainConfig)]
        for key in model.model_fields
    }
    code = [*SPAN.findall(FENCE.sub("", text)), *(line for block in FENCE.findall(text) for line in block.splitlines())]
    for line in code:
        for words in re.findall(r"(?:^|[\s/])fedtalk ([a-z][^;#]*)", line):
            first, *rest = words.split()
            # A job is a command behind a command: options of both may follow.
            names = [first, rest[0]] if first == "submit" and rest else [first]
            options: set[str] = set()
            for name in names:
                name = f"{name} {rest[0]}" if name in GROUPS and rest else name
                if name in known:
                    options |= options_of(known[name])
                elif name not in (*GROUPS, "TASK"):
                    wrong.append(f"fedtalk {name}")
            wrong += [f"fedtalk {first} {word}" for word in rest if word.startswith("--") and word not in options]
            if "train" in names or first == "compare":
                keys = [word.partition("=")[0] for word in rest if re.match(r"[a-z_.0-9]+=", word)]
                wrong += [f"{first} {key}=" for key in keys if key not in settings and key != "key"]
        if line.startswith("--") and line.split()[0] not in set().union(*map(options_of, known.values())):
            wrong.append(line)
    return wrong


@pytest.mark.parametrize("page", [*(f"docs/{page}" for page in PAGES), *FRONT])
def test_a_page_names_commands_options_and_settings_that_exist(page: str, repository: Path) -> None:
    assert wrong_commands((repository / page).read_text(encoding="utf-8")) == []


def test_a_wrong_command_is_found() -> None:
    text = (
        "`fedtalk trian x` `--nothing` `fedtalk privacy plan --clients 3 --noise 1` `fedtalk train C local.stepz=3`\n"
        "```\nfedtalk prepare --corpus grid --max-clip 3  # --no\nfedtalk train c.yaml rounds=1 local.loss.tdc=0\n```\n"
    )
    expected = [
        "fedtalk trian",
        "--nothing",
        "fedtalk privacy --noise",
        "train local.stepz=",
        "fedtalk prepare --max-clip",
    ]
    assert wrong_commands(text) == expected


# Configuration


class Inner(Section):
    """The inner one."""

    share: float | None = Field(None, gt=0, le=1)
    """Of <all>, `a < b`."""


class Outer(Section):
    """The outer one."""

    kind: Literal["a", "b"] = "a"
    """Which."""
    names: list[str] | None = None
    """Whose."""
    count: int = Field(ge=1)
    """How many,
    in all."""
    inner: Inner = Inner()


def test_a_reference_by_hand() -> None:
    assert configuration.reference(Outer) == (
        "The outer one.\n\n"
        "`kind`{: #kind }: `a` or `b`, default `a`\n:   Which.\n\n"
        "`names`{: #names }: list of text or `null`, default `null`\n:   Whose.\n\n"
        "`count`{: #count }: whole number, required, ≥\N{NO-BREAK SPACE}1\n:   How many,\n    in all.\n\n"
        "Sections:\n\n- [`inner`](#inner): The inner one.\n\n"
        "## inner {: #inner }\n\nThe inner one.\n\n"
        "`inner.share`{: #inner.share }: number or `null`, default `null`, >\N{NO-BREAK SPACE}0, ≤\N{NO-BREAK SPACE}1\n"
        ":   Of &lt;all>, `a < b`."
    )
    assert configuration.defaults(Outer) == "kind: a\nnames: null\ncount:  # required\ninner:\n  share: null"


def fields() -> list[tuple[str, Any]]:
    return [
        (f"{section}.{key}".strip("."), field)
        for section, model in [("", TrainConfig), *configuration.sections(TrainConfig)]
        for key, field in model.model_fields.items()
        if not configuration.is_section(field.annotation)
    ]


def test_every_section_and_field_says_what_it_is() -> None:
    assert len(fields()) > 60 and {"local.loss.tdc", "privacy.epsilon", "run"} <= dict(fields()).keys()
    assert [name for name, field in fields() if not field.description] == []
    assert [name for name, model in configuration.sections(TrainConfig) if not model.__dict__.get("__doc__")] == []


def test_the_page_holds_every_field_with_its_docstring() -> None:
    page = hooks.filled((DOCS / "configuration.md").read_text(encoding="utf-8"))
    html = markdown.markdown(page, extensions=["attr_list", "def_list"])
    html = html.replace("\N{NO-BREAK SPACE}", " ")
    shown = dict(re.findall(r'<dt><code id="([^"]+)">[^<]+</code>(.*?)</dt>', html))
    assert list(shown) == [name for name, _ in fields()]
    words = " ".join(page.split())
    for name, field in fields():
        text = configuration._escaped(" ".join(field.description.split()))
        assert f"`{name}`{{: #{name} }}" in words and text in words, name
    assert shown["rounds"] == ": whole number, default <code>10</code>, ≥ 1"
    assert shown["server.momentum"] == ": number, default <code>0.0</code>, ≥ 0, &lt; 1"
    assert "<code>skellam</code> or <code>gaussian</code>" in shown["privacy.mechanism"]


def test_the_defaults_are_a_configuration_that_changes_nothing() -> None:
    tree = yaml.safe_load(configuration.defaults(TrainConfig))
    needed = {"run": "r", "shards": "s", "pretrained": "p"}
    assert parse_config(tree | needed, "page") == parse_config(needed, "bare")
    assert tree["run"] is None and tree["local"]["loss"]["tdc"] == 0.25


# What the site is made of


def test_a_file_of_the_repository_becomes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "README.md").write_text(
        "# Title\n\n[s](../docs/scaling.md#slots) [y](a.yaml) [`deep/b.yaml`](b.yaml) [h](https://x.y) [t](#top)\n"
        "```\n[code](a.yaml)\n```\n"
    )
    assert hooks.filled("# Page\n\n<!-- the text of deep/README.md -->\n") == (
        "# Page\n\n[s](scaling.md#slots) y (`deep/a.yaml`) `deep/b.yaml` [h](https://x.y) [t](#top)\n"
        "```\n[code](a.yaml)\n```\n\n"
    )


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("One. Two `a < b`.\n\nSee <x>.", "One. Two `a < b`.\n\nSee &lt;x>."),
        ("Layout:\n\n    A/b\n\n    A/c\n\nEnd.", "Layout:\n\n```text\n    A/b\n\n    A/c\n```\n\nEnd."),
        ("one    first\nother  second", "```text\none    first\nother  second\n```"),
        (">>> 1 + 1\n2", "```pycon\n>>> 1 + 1\n2\n```"),
        ("- a\n  b", "- a\n  b"),
    ],
)
def test_docstrings_become_markdown(docstring: str, expected: str) -> None:
    assert docstrings.as_markdown(docstring) == expected


def test_the_site_is_built_without_a_warning_and_asks_nobody(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(repository)}
    built = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=250)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert pages.keys() == {"404.html", *(page.removesuffix(".md") + ".html" for page in PAGES)}
    fetched = r'<(?:script|img|link rel="(?:stylesheet|icon|preconnect)")[^>]*(?:src|href)="(?:https?:)?//[^"]*"'
    assert [found for text in pages.values() for found in re.findall(fetched, text)] == []
    assert 'id="fedtalk_ray.privacy.shamir' in pages["reference/privacy.html"]
    assert "```" not in pages["cluster.html"] and not list((tmp_path / "site").rglob("*.py"))


# Examples


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`install`, into this test's folder."""
    return lambda path: install(path, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_imports_exists(page: str) -> None:
    """Files that the page itself tells to write (the titled blocks) aside."""
    text = (DOCS / page).read_text(encoding="utf-8")
    own = {
        title.removesuffix(".py").replace("/", ".") for title in re.findall(r'^```python title="([^"]+)"$', text, re.M)
    }
    for block in re.findall(r"^```python[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module not in own:
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_the_configuration_of_the_quickstart_is_one() -> None:
    text = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    (block,) = re.findall(r'^```yaml title="mine.yaml"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    assert parse_config(yaml.safe_load(block), "mine.yaml").pretrained == "models/mine"


def test_the_examples_keep_the_house_rules(tmp_path: Path) -> None:
    from tests.unit.test_architecture import RULES, plant

    page = (DOCS / "extending.md").read_text(encoding="utf-8")
    titles = re.findall(r'^```python title="([^"]+)"$', page, re.MULTILINE)
    assert len(titles) == 3
    sources = plant(
        tmp_path, {"fedtalk_ray/__init__.py": ""} | {each: example("extending.md", each) for each in titles}
    )
    assert [line for rule in RULES for line in rule(sources)] == []


def test_the_strategy_of_the_page(installed) -> None:
    from fedtalk_ray.federation.strategies import load_strategy

    installed("fedtalk_ray/federation/strategies/tempered.py")
    strategy = load_strategy(StrategyConfig(name="tempered", alpha=0.7, mu=0.3))
    assert (strategy.score_alpha, strategy.proximal) == (0.7, 0.3)
    weights = [strategy.weight(*client) for client in ((400, 1.0), (100, 0.5), (900, 0.0))]
    assert weights == pytest.approx([20, 5.5, 3])
    with pytest.raises(ValueError, match="got none"):
        strategy.weight(1, None)


def test_the_corpus_of_the_page(installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    from fedtalk_ray.corpora import listing as corpora
    from fedtalk_ray.media.encoding import write_video
    from fedtalk_ray.media.video import first_picture

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

    frames = np.full((10, 64, 64, 3), 90, np.uint8)
    write_video(root / "session1/ann_001.mov", frames, None)
    write_sound(root / "session1/ann_001.wav")
    assert abs(int(first_picture(sources[0].path).mean()) - 90) < 4
    assert np.abs(corpora.sound_beside(sources[0])).max() > 0.3

    with pytest.raises(corpora.CorpusError, match=f"but {root} does: give --root {root}"):
        corpora.list_corpus("studio", root / "session1")
    with pytest.raises(corpora.CorpusError, match=r"needs --root, the folder that holds session1, session2"):
        corpora.list_corpus("studio", None)
    (root / "session2" / "nobody.mov").write_bytes(b"")
    with pytest.raises(corpora.CorpusError, match=r"nobody.mov is not named <speaker>_<take>.mov"):
        corpora.list_corpus("studio", root)


def write_sound(path: Path) -> None:
    """Half a second of 440 Hz, 16 kHz."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16_000)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((tone * 32767).astype("<i2").tobytes())


def test_the_backbone_of_the_page(installed, make_shards, make_config, tmp_path: Path) -> None:
    """Through everything that loads a backbone: pretraining, a client's fit, export, and a video out of the run."""
    import torch

    from fedtalk_ray.model.pipeline import load_pipeline
    from fedtalk_ray.model.released import load_released, release_model
    from fedtalk_ray.shards.format import load_manifest
    from fedtalk_ray.shards.reader import read_pieces
    from fedtalk_ray.shards.windows import held_out_windows
    from fedtalk_ray.training.local import LocalTrainer
    from fedtalk_ray.training.pretrain import pretrain

    shards, untrained, run = tmp_path / "shards", tmp_path / "untrained", tmp_path / "run"
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
    sample, speech, face = torch.randn(2, 8, 16, 8, 8), torch.randn(2, 8, 44, 40), torch.randn(2, 16, 8, 8)
    # As built, its output layer is zero: what is left is the motion that the sound suggests.
    assert torch.equal(fresh(sample, torch.tensor([3, 900]), speech, face), fresh.speech_motion(speech))
    fresh.residual_std.fill_(2.0)
    assert torch.equal(fresh.to_residual(sample, face), (sample - face[:, None]) / 2)
    assert torch.allclose(fresh.from_residual(fresh.to_residual(sample, face), face), sample, atol=1e-6)

    assert pretrain(shards, tmp_path / "model", minutes=9, steps=2, start=str(untrained)).steps == 2
    pipeline = load_pipeline(str(tmp_path / "model"))
    trainer = LocalTrainer(pipeline, make_config())
    names = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name, _ in trainer.shared()}
    layers = ("attention.linear1", "attention.linear2", "mlp.linear1", "mlp.linear2", "time_emb_proj")
    assert {f"blocks.{block}.{layer}" for block in range(4) for layer in layers} <= names
    pieces = read_pieces(shards, load_manifest(shards), "s1", "val", ("latents", "speech"))
    windows = held_out_windows(pieces, trainer.window, 4)
    start = adapters_of(trainer)
    result = trainer.fit(start, None, [windows] * 5, seed=1)
    assert np.abs(result.update).max() > 0 and np.isfinite(result.update).all()

    trainer.load(start + result.update, None)
    trainer.model.eval()
    pipeline.register_modules(denoiser=trainer.model)
    release_model(RunFolder(run), 3, pipeline, trainer.model, "adapter")
    spoken, again = frames_of(pipeline), frames_of(load_released(RunFolder(run)))
    assert spoken.shape == (10, 32, 32, 3) and np.abs(spoken.astype(int) - again).max() <= 1


def adapters_of(trainer: Any) -> np.ndarray:
    from fedtalk_ray.model.adapters import to_vector

    return to_vector(trainer.shared())


def frames_of(pipeline: Any) -> np.ndarray:
    """0.4 seconds of a random face and sound."""
    import torch

    rng = np.random.default_rng(0)
    face, sound = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), rng.normal(0, 0.1, 6400).astype(np.float32)
    return pipeline(face, sound, generator=torch.Generator().manual_seed(0)).frames
