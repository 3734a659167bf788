"""What every test shares: quiet, offline, single-threaded settings, and where the real clips lie."""

import gc
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import numpy as np

# Set before torch, Ray or a hub client is imported, and inherited by every Ray worker. A value set outside wins.
for name, value in {
    "OMP_NUM_THREADS": "1",  # several workers share few cores
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",  # no test may fetch weights
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's default of 15 starves workers on a busy machine
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # an actor that asked for no GPU sees none
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would package the whole repository
}.items():
    os.environ.setdefault(name, value)

# Trial certificates of tests lie apart from the user's own.
os.environ["FEDTALK_HOME"] = tempfile.mkdtemp(prefix="fedtalk-home-")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def grid_root() -> Path:
    """The folder of GRID clips (`<speaker>/*.mp4`): $FEDTALK_GRID, else ../shared/data/grid beside the repository."""
    root = Path(os.environ.get("FEDTALK_GRID") or REPOSITORY.parent / "shared" / "data" / "grid")
    if not root.is_dir():
        pytest.skip(f"no GRID clips at {root}; name their folder in FEDTALK_GRID")
    return root


@pytest.fixture
def face_points() -> "np.ndarray":
    """A face's 68 points, about where an aligned crop has them: jaw, brows, nose, eyes, an ellipse for each lip."""
    import numpy as np

    jaw = [(0.5 + 0.42 * np.cos(a), 0.5 + 0.5 * np.sin(a)) for a in np.linspace(np.pi, 0, 17)]
    above = [(x, 0.3) for x in np.linspace(0.2, 0.8, 10)]
    nose = [(0.5, y) for y in np.linspace(0.35, 0.5, 4)] + [(x, 0.58) for x in np.linspace(0.43, 0.57, 5)]
    eyes = [(x, 0.38) for x in np.linspace(0.28, 0.72, 12)]
    outer = [(0.5 - 0.14 * np.cos(a), 0.75 - 0.06 * np.sin(a)) for a in np.arange(12) * np.pi / 6]
    inner = [(0.5 - 0.10 * np.cos(a), 0.75 - 0.01 * np.sin(a)) for a in np.arange(8) * np.pi / 4]
    return np.array([*jaw, *above, *nose, *eyes, *outer, *inner])


def pytest_collection_finish() -> None:
    """What was imported stays: looked through for garbage again and again, a million objects make tests that open
    thousands of connections five times as long."""
    gc.collect()
    gc.freeze()
