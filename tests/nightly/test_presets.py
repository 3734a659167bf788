"""docs/presets.md shows what its command prints: estimates of every size on the meta device."""

import subprocess
import sys
from pathlib import Path


def test_the_page_shows_the_table_that_the_command_prints(repository: Path) -> None:
    command = [sys.executable, "-m", "fedtalk_ray.model.presets"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=repository).stdout
    assert printed.count("\n") == 5
    assert printed in (repository / "docs" / "presets.md").read_text(encoding="utf-8")
