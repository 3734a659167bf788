"""What every test shares: quiet, offline, single-threaded settings, and where the real clips lie."""

import gc
import os
import tempfile
from pathlib import Path

import pytest

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


def pytest_collection_finish() -> None:
    """What was imported stays: looked through for garbage again and again, a million objects make tests that open
    thousands of connections five times as long."""
    gc.collect()
    gc.freeze()
