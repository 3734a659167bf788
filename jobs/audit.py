"""Attacks on a run, as a Ray job or by hand; the arguments are those of `fedtalk audit`.

ray job submit --working-dir . -- python jobs/audit.py /nfs/runs/grid --only membership
"""

import sys

from fedtalk_ray.commands.cli import main

if __name__ == "__main__":
    main(["audit", *sys.argv[1:]])
