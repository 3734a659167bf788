"""Two runs' reports, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedtalk_ray.report.page import write_report

PRIVATE = {"mechanism": "skellam", "epsilon": 8.0, "noise_multiplier": 2.0, "clip_norm": 1.0}


@pytest.fixture(scope="session")
def pages(
    tmp_path_factory: pytest.TempPathFactory, build_run: Callable, plain_record: Callable, secure_record: Callable
) -> dict[str, Path]:
    """The reports of a plain run with a client that is shown, and of a secure run with noise."""
    folder = tmp_path_factory.mktemp("pages")
    rounds = (1, 2, 3)
    plain = build_run(folder / "plain", [plain_record(n) for n in rounds], measured=True, aggregation="plain")
    secure = build_run(folder / "secure", [secure_record(n) for n in rounds], measured=True, privacy=PRIVATE)
    return {"plain": write_report(plain, client="anna"), "secure": write_report(secure)}
