"""A face and a sound to a video, as a Ray job or by hand; the arguments are those of `fedtalk generate`.

ray job submit --working-dir . -- python jobs/generate.py --run RUN --reference FACE --audio SPEECH --out OUT.mp4
"""

import sys

from fedtalk_ray.commands.cli import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]])
