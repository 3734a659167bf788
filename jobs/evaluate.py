"""Metrics on held-out clips, as a Ray job or by hand; the arguments are those of `fedtalk evaluate`.

ray job submit --working-dir . -- python jobs/evaluate.py --run RUN --shards SHARDS --out metrics.json
"""

import sys

from fedtalk_ray.commands.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
