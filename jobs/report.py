"""A run as one HTML page, as a Ray job or by hand; the arguments are those of `fedtalk report`.

ray job submit --working-dir . -- python jobs/report.py /nfs/runs/grid --client s1
"""

import sys

from fedtalk_ray.commands.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
