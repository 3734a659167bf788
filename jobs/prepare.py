"""Clips to shards, as a Ray job or by hand; the arguments are those of `fedtalk prepare`.

ray job submit --working-dir . -- python jobs/prepare.py --corpus grid --root DIR --out SHARDS
"""

import sys

from fedtalk_ray.commands.cli import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
