"""What a process loads that only reads clips."""

import subprocess
import sys


def test_who_reads_clips_loads_no_networks() -> None:
    """A cluster starts several such processes, and each would take seconds and hundreds of megabytes."""
    look = "import sys, fedtalk_ray.shards.reading; print({'diffusers', 'peft', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
