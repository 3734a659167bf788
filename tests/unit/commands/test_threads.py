"""How many threads a command computes with, before anything asks."""

import os
import subprocess
import sys

import pytest

LOOK = """
import os, sys
import fedtalk_ray.commands
print({"numpy", "torch"} & set(sys.modules), os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"])
"""


@pytest.mark.parametrize("said", [{}, {"OMP_NUM_THREADS": "7", "OPENBLAS_NUM_THREADS": "3"}])
def test_a_core_is_left_and_numpys_threads_do_not_wait_unless_somebody_says_otherwise(said: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")} | said
    done = subprocess.run([sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, check=True)
    cores = max(1, len(os.sched_getaffinity(0)) - 1)
    usual = {"OMP_NUM_THREADS": str(cores), "OPENBLAS_NUM_THREADS": "1"} | said
    assert done.stdout.strip() == f"set() {usual['OMP_NUM_THREADS']} {usual['OPENBLAS_NUM_THREADS']}"
