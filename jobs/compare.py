"""Methods x seeds side by side, as a Ray job or by hand; the arguments are those of `fedtalk compare`.

ray job submit --working-dir . -- python jobs/compare.py jobs/configs/compare/methods.yaml --out /nfs/runs/methods
"""

import sys

from fedtalk_ray.commands.cli import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
