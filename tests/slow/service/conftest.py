"""A run with five people's adapters, served."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedtalk_ray.config import save_config
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service import speaking
from tests.served import Served, run_of_five


@pytest.fixture(scope="session")
def run(make_pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of_five(make_pipeline(), tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def own_run(exported: Path, report_shards: Path, make_config: Callable, tmp_path_factory) -> RunFolder:
    """A run with a client of its own, anna, to whom people may come."""
    folder = tmp_path_factory.mktemp("own") / "run"
    shutil.copytree(exported, folder)
    shutil.copytree(RunFolder(exported).clients_folder, RunFolder(folder).clients_folder)
    settings = {"run": str(folder), "shards": str(report_shards), "rounds": 3, "aggregation": "plain"}
    save_config(make_config(**settings), RunFolder(folder).config_file)
    return RunFolder(folder)


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(run, tmp_path_factory.mktemp("asked"))
    yield made
    made.close()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Every job waits before it makes anything, until it is let go or taken back."""
    go = threading.Event()
    real = speaking.work

    def held(folder: Path, stopped: Callable[[], bool], **more: Any) -> None:
        while not (go.wait(0.01) or stopped()):
            pass
        real(folder, stopped, **more)

    monkeypatch.setattr(speaking, "work", held)
    yield go
    go.set()


@pytest.fixture(scope="module")
def open_to_all(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Without tokens."""
    made = Served(run, tmp_path_factory.mktemp("asked"), frozenset())
    yield made
    made.close()
