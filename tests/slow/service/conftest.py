"""A run with five people's adapters, served."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedtalk_ray.model import adapters
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service import speaking
from tests.served import Served


@pytest.fixture(scope="session")
def run(make_pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose five clients each have an adapter of their own."""
    folder = tmp_path_factory.mktemp("made") / "run"
    pipeline = make_pipeline()
    pipeline.save_pretrained(str(folder / "pipeline"))
    model = adapters.with_adapters(pipeline.denoiser, None, 1.0, 3)
    for number in range(5):
        for _, parameter in adapters.identity_parameters(model):
            parameter.data.normal_(0, 0.3)
        place = RunFolder(folder).client(f"c{number}")
        place.path.mkdir(parents=True)
        adapters.save_adapter(model, adapters.IDENTITY, place.newest_adapter)
    return folder


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
