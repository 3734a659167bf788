"""A disk that is full while a checkpoint is written, for real: the system itself refuses the bytes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from fedtalk_ray.runs.checkpoints import Checkpoint, load_checkpoint, save_checkpoint

CHILD = """
import resource, sys
from pathlib import Path
import numpy as np
from fedtalk_ray.errors import UserError
from fedtalk_ray.runs.checkpoints import Checkpoint, save_checkpoint

resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    save_checkpoint(Path(sys.argv[1]), Checkpoint(2, np.ones(100_000, np.float32), {}), "f")
except UserError as error:
    print(error)
"""


def test_the_last_good_checkpoint_stays_and_nothing_half_written(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, Checkpoint(1, np.full(3, 7, np.float32), {}), "f")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    (line,) = child.stdout.splitlines()
    assert line.startswith(f"cannot write {folder / 'round-00002'}: ") and "left half written" in line
    kept = load_checkpoint(folder)
    assert kept is not None and kept.round == 1 and kept.parameters.tolist() == [7, 7, 7]
    assert [path.name for path in folder.iterdir()] == ["round-00001"]
