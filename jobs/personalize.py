"""One client's own adapter, as a Ray job or by hand; the arguments are those of `fedtalk personalize`.

ray job submit --working-dir . -- python jobs/personalize.py --run RUN --client ID
"""

import sys

from fedtalk_ray.commands.cli import main

if __name__ == "__main__":
    main(["personalize", *sys.argv[1:]])
