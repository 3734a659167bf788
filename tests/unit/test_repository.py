"""Holds the files around the code: configurations say how to run them, no private path, a lock that fits."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

FOLDERS = ("fedtalk_ray", "jobs", "cluster", "tests", "docs", ".ci")

# A person's folder; the user `ray` of Ray's own container images is nobody's.
PRIVATE_PATH = re.compile(r"/(?:home|Users)/(?!ray\b)\w+|/(?:root)/[\w.]+")


def committed_texts(root: Path) -> Iterator[tuple[Path, str]]:
    """Every text file in the root and in `FOLDERS` (no git needed: a downloaded archive has none)."""
    inside = (file for folder in FOLDERS for file in (root / folder).rglob("*"))
    for file in [*root.iterdir(), *inside]:
        if file.is_file() and file.name != ".git" and "__pycache__" not in file.parts:
            content = file.read_bytes()
            if b"\0" not in content:
                yield file.relative_to(root), content.decode("utf-8", errors="replace")


def test_every_configuration_opens_with_its_command(repository: Path) -> None:
    configs = sorted((repository / "jobs" / "configs").glob("*.yaml"))
    assert configs, "jobs/configs holds no configuration"
    for config in configs:
        first = config.read_text(encoding="utf-8").splitlines()[0]
        runs = re.search(r"fedtalk [a-z]+ |python (jobs/\w+\.py|-m jobs\.\w+) |ray job submit ", first)
        assert first.startswith("#"), f"{config.name}: the first line is no comment: {first!r}"
        assert runs and f"jobs/configs/{config.name}" in first, f"{config.name}: no command that runs it in {first!r}"


def test_no_file_names_a_private_path(repository: Path) -> None:
    texts = dict(committed_texts(repository))
    assert Path("pyproject.toml") in texts
    found = [f"{path}: {match[0]}" for path, text in texts.items() for match in PRIVATE_PATH.finditer(text)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("cd /{}/ann/clips", True),
        ("/{}/rayleigh/x", True),
        ("see /{}/ray/run.sh", False),
        ("out/{}x/a", False),
    ],
)
def test_the_private_path_rule_can_fail(text: str, private: bool) -> None:
    assert bool(PRIVATE_PATH.search(text.format("home"))) == private


def test_the_lock_fits_the_ranges_and_leaves_torch_free(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonical(name): version for name, version in pins.items()}
    wanted = [Requirement(line) for line in [*project["dependencies"], *extras["dev"], *extras["judge"]]]

    for requirement in wanted:
        name = canonical(requirement.name)
        if name not in {"torch", project["name"]}:
            assert name in pins, f"constraints.txt does not pin {name}"
            assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} is outside {requirement}"
    assert not [name for name in pins if re.fullmatch(r"torch|torchvision|triton|nvidia-.*", name)]
    assert "torch" in {requirement.name for requirement in wanted}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
