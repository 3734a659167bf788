"""Central pretraining on public clips, as a Ray job or by hand; the arguments are those of `fedtalk pretrain`.

ray job submit --working-dir . -- python jobs/pretrain.py --shards SHARDS --out DIR
"""

import sys

from fedtalk_ray.commands.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
