"""Holds the house in order: who may import Ray, which way dependencies run, names, lengths, no pickle on the wire.

Every rule is a function from the parsed files to a list of lines, one per violation, naming the file and the import.
Each is run on the repository, and on a small planted tree to show that it can fail.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

# From the ground up. A module may import from lower rows and from its own package, never sideways or upwards.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "seeding"),
    ("outputs",),
    ("recipe",),
    ("slot_settings", "client_settings"),
    ("settings",),
    ("config", "messages", "plotting", "progress"),
    ("media", "privacy", "runs"),
    ("corpora", "enrolment", "marking", "model", "tracking"),
    ("shards",),
    ("federation",),
    ("training",),
    ("generation",),
    ("service",),
    ("evaluation",),
    ("audits",),
    ("report",),
    ("page",),
    ("coordinator",),
    ("actors",),
    ("sites",),
    ("rounds",),
    ("serving",),
    ("comparison",),
    ("commands",),
    ("jobs",),
)

# Sideways imports that are meant: (importer, imported).
SIDEWAYS: tuple[tuple[str, str], ...] = ()

MAY_IMPORT_RAY: tuple[str, ...] = (
    "fedtalk_ray/actors/*",
    "fedtalk_ray/commands/*",
    "fedtalk_ray/rounds.py",
    "fedtalk_ray/shards/prepare.py",
    "fedtalk_ray/shards/read_ahead.py",
    "fedtalk_ray/tracking/prometheus.py",
    "jobs/*",
)

# What a peer sends is read here; unpickling it would run the peer's code.
NO_PICKLE: tuple[str, ...] = (
    "fedtalk_ray/messages.py",
    *(f"fedtalk_ray/{package}/*" for package in ("coordinator", "enrolment", "federation", "privacy", "sites")),
)
PICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch.load"}

SAYS_NOTHING = {"util", "utils", "helper", "helpers", "manager", "managers", "common", "misc"}

WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.datetime.now"}
CLOCK_NAMES = {name.rpartition(".")[2] for name in WALL_CLOCKS}

MAX_LINES = 400


@dataclass(frozen=True)
class Source:
    """One Python file. path: as `fedtalk_ray/media/video.py`; module: as `fedtalk_ray.media.video`."""

    path: str
    module: str
    text: str
    tree: ast.Module


@dataclass(frozen=True)
class Import:
    """One imported name, made absolute: `from ..data import video` in model/ is `fedtalk_ray.media.video`."""

    line: int
    name: str


def read_sources(root: Path) -> list[Source]:
    """Every Python file of the package and of the recipes under `root`."""
    sources = []
    for file in sorted([*root.glob("fedtalk_ray/**/*.py"), *root.glob("jobs/**/*.py")]):
        path = file.relative_to(root)
        parts = path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts
        text = file.read_text(encoding="utf-8")
        sources.append(Source(path.as_posix(), ".".join(parts), text, ast.parse(text, filename=str(path))))
    return sources


def imports_of(source: Source) -> Iterator[Import]:
    """Every import of the file, also those inside functions and under TYPE_CHECKING.

    `from a import b` gives `a.b`: b may be a module, and a prefix test treats a name inside `a` the same.
    """
    is_package = source.path.endswith("/__init__.py")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = source.module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                yield Import(node.lineno, f"{base}.{alias.name}")


def lies_in(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def unit_of(name: str) -> str | None:
    """The row entry that a dotted name belongs to: `media` for `fedtalk_ray.media.video`, or None outside."""
    parts = name.split(".")
    if parts[0] == "jobs":
        return "jobs"
    if parts[0] == "fedtalk_ray":
        return parts[1] if len(parts) > 1 else "fedtalk_ray"
    return None


def ray_stays_in_its_place(sources: list[Source]) -> list[str]:
    return [
        f"{source.path}:{found.line}: imports {found.name}; only {', '.join(MAY_IMPORT_RAY)} may import ray"
        for source in sources
        if not matches(source.path, MAY_IMPORT_RAY)
        for found in imports_of(source)
        if lies_in(found.name, "ray")
    ]


def layers_run_one_way(sources: list[Source]) -> list[str]:
    rank = {name: row for row, names in enumerate(LAYERS) for name in names}
    modules = {source.module for source in sources}
    rank["fedtalk_ray"] = -1  # the package's own __init__: anyone may import it, it imports none of the rest
    lines = []
    for source in sources:
        unit = unit_of(source.module)
        assert unit is not None
        if unit not in rank:
            lines.append(f"{source.path}:1: {source.module} has no row in LAYERS")
            continue
        for found in imports_of(source):
            target = unit_of(found.name)
            if target not in rank and lies_in(found.name, "fedtalk_ray") and f"fedtalk_ray.{target}" not in modules:
                target = "fedtalk_ray"  # `from fedtalk_ray import __version__`: a name, not a module
            if target is None or target == unit:
                continue
            if target in rank and rank[target] < rank[unit]:
                continue
            if any(fnmatchcase(source.module, a) and lies_in(found.name, b) for a, b in SIDEWAYS):
                continue
            lines.append(f"{source.path}:{found.line}: imports {found.name}; {unit} may not import {target}")
    return lines


def names_say_something(sources: list[Source]) -> list[str]:
    return [
        f"{source.path}: the name {part!r} says nothing; name what the module does"
        for source in sources
        for part in source.module.split(".")
        if part in SAYS_NOTHING
    ]


def files_hold_one_idea(sources: list[Source]) -> list[str]:
    return [
        f"{source.path}: {count} lines, at most {MAX_LINES}; a longer file holds two ideas"
        for source in sources
        if (count := len(source.text.splitlines())) > MAX_LINES
    ]


def nothing_received_is_unpickled(sources: list[Source]) -> list[str]:
    lines = []
    for source in sources:
        if not matches(source.path, NO_PICKLE):
            continue
        for found in imports_of(source):
            if any(lies_in(found.name, pickler) for pickler in PICKLERS):
                lines.append(f"{source.path}:{found.line}: imports {found.name}; a peer's bytes are never unpickled")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and node.attr == "load" and ast.unparse(node) == "torch.load":
                lines.append(f"{source.path}:{node.lineno}: uses torch.load; a peer's bytes are never unpickled")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                lines.append(f"{source.path}:{node.value.lineno}: allow_pickle; a peer's bytes are never unpickled")
    return lines


RUN_OWNER = "fedtalk_ray/runs/*"
RUN_FILES = {
    "config.yaml", "history.jsonl", "ledger.json", "exchange.json", "server.key", "roster.jsonl", "released.json",
    "metrics.json", "figures.json", "report.html", "audit.json", "signing.key", "protocol.json", "state.json",
}  # fmt: skip
RUN_FOLDERS = {
    "checkpoints",
    "pipeline",
    "adapters",
    "shared",
    "clients",
    "identity",
    "samples",
    "tensorboard",
    "audit",
}

NO_RUNS = {("fedtalk_ray/evaluation/weights.py", "checkpoints")}
"""Of torch.hub's cache."""


def only_its_owner_knows_a_runs_folder(sources: list[Source]) -> list[str]:
    """Nobody else names a file of a run, joins one of its folders to a path, or looks for checkpoints and samples."""
    lines = []
    for source in sources:
        if matches(source.path, (RUN_OWNER,)):
            continue
        for node in ast.walk(source.tree):
            text = None
            if isinstance(node, ast.Constant) and node.value in RUN_FILES:
                text = node.value
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
                text = node.right.value if node.right.value in RUN_FOLDERS else None
            elif isinstance(node, ast.JoinedStr) and str(getattr(node.values[0], "value", "")).startswith("round-"):
                text = "round-"
            if (source.path, text) in NO_RUNS:
                continue
            if text is not None:
                lines.append(f"{source.path}:{node.lineno}: names {text} of a run's folder; ask runs.folder.RunFolder")
    return lines


Rule = Callable[[list[Source]], list[str]]


def no_deadline_trusts_the_clock(sources: list[Source]) -> list[str]:
    """The wall clock jumps, when it is set or a machine sleeps: what waits or measures uses `time.monotonic`."""
    return [
        f"{source.path}:{node.lineno}: {ast.unparse(node)} can jump; use time.monotonic"
        for source in sources
        if source.path.startswith("fedtalk_ray/")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and node.attr in CLOCK_NAMES and ast.unparse(node) in WALL_CLOCKS
    ]


RULES: tuple[Rule, ...] = (
    no_deadline_trusts_the_clock,
    ray_stays_in_its_place,
    layers_run_one_way,
    names_say_something,
    files_hold_one_idea,
    nothing_received_is_unpickled,
    only_its_owner_knows_a_runs_folder,
)


def test_the_repository_keeps_every_rule(repository: Path) -> None:
    sources = read_sources(repository)
    assert "fedtalk_ray" in {source.module for source in sources}, f"no package found under {repository}"
    violations = [line for rule in RULES for line in rule(sources)]
    assert not violations, "\n" + "\n".join(violations)


@pytest.mark.parametrize("pattern", [*MAY_IMPORT_RAY, "fedtalk_ray/messages.py", "fedtalk_ray/federation/*"])
def test_tables_name_what_exists(pattern: str, repository: Path) -> None:
    """A renamed file must not leave a rule that holds nothing, or a permission that nobody sees."""
    assert list(repository.glob(pattern)), f"{pattern} names no file; correct the table in {Path(__file__).name}"


def plant(root: Path, files: dict[str, str]) -> list[Source]:
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return read_sources(root)


PLANTED: tuple[tuple[Rule, str, str, str], ...] = (
    # rule, file, its text, what the one violation must say
    (no_deadline_trusts_the_clock, "rounds.py", "import time\nx = time.time()", "rounds.py:2: time.time can jump"),
    (ray_stays_in_its_place, "media/video.py", "def f():\n    from ray import get", "video.py:2: imports ray.get"),
    (layers_run_one_way, "model/unet.py", "from ..rounds import run", "imports fedtalk_ray.rounds.run"),
    (layers_run_one_way, "model/__init__.py", "from .. import rounds", "model may not import rounds"),
    (layers_run_one_way, "privacy/sum.py", "import fedtalk_ray.media.video", "privacy may not import media"),
    (layers_run_one_way, "commands/cli.py", "from jobs.train import main", "commands may not import jobs"),
    (layers_run_one_way, "extra.py", "", "fedtalk_ray.extra has no row in LAYERS"),
    (names_say_something, "media/utils.py", "", "media/utils.py: the name 'utils' says nothing"),
    (files_hold_one_idea, "rounds.py", "x = 1\n" * (MAX_LINES + 1), "rounds.py: 401 lines, at most 400"),
    (nothing_received_is_unpickled, "messages.py", "from pickle import loads", "messages.py:1: imports pickle.loads"),
    (nothing_received_is_unpickled, "privacy/sum.py", "import torch\ntorch.load(0)", "sum.py:2: uses torch.load"),
    (nothing_received_is_unpickled, "messages.py", "f(allow_pickle=True)", "messages.py:1: allow_pickle"),
    (only_its_owner_knows_a_runs_folder, "rounds.py", 'x = run / "samples"', "rounds.py:1: names samples of a run"),
    (only_its_owner_knows_a_runs_folder, "rounds.py", 'run.glob(f"round-{n}.png")', "rounds.py:1: names round-"),
)


@pytest.mark.parametrize(("rule", "path", "text", "says"), PLANTED, ids=[f"{r.__name__}-{p}" for r, p, *_ in PLANTED])
def test_a_planted_violation_is_caught(rule: Rule, path: str, text: str, says: str, tmp_path: Path) -> None:
    sources = plant(tmp_path, {"fedtalk_ray/__init__.py": "", "fedtalk_ray/rounds.py": "", f"fedtalk_ray/{path}": text})
    violations = rule(sources)
    assert len(violations) == 1, violations
    assert says in violations[0]


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    sources = plant(
        tmp_path,
        {
            "fedtalk_ray/__init__.py": "__version__ = '0'",
            "fedtalk_ray/config.py": "from fedtalk_ray import __version__\nfrom fedtalk_ray.errors import E",
            "fedtalk_ray/messages.py": "import numpy as np\nnp.load(0, allow_pickle=False)",
            "fedtalk_ray/shards/read_ahead.py": "import ray\nfrom . import video\nfrom ..config import C\nimport rayon",
            "fedtalk_ray/shards/prepare.py": "from fedtalk_ray.model.autoencoder import encode",
            "fedtalk_ray/model/pipeline.py": "from fedtalk_ray.media import face_template, video",
            "fedtalk_ray/training/fit.py": "import pickle\nimport torch\ntorch.load(0)\nimport fedtalk_ray.model.unet",
            "fedtalk_ray/commands/cli.py": "import ray\nfrom fedtalk_ray.commands.demo import run_demo",
            "fedtalk_ray/media/commonplace.py": "x = 1\n" * MAX_LINES,
            "jobs/train.py": "import ray\nfrom fedtalk_ray.rounds import run\nfrom jobs import evaluate",
        },
    )
    assert [line for rule in RULES for line in rule(sources)] == []
