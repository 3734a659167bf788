"""Rounds over sites, by hand or as a Ray job on a node that sites reach; the arguments are those of `fedtalk serve`.

python jobs/serve.py jobs/configs/sites.yaml --tls authority/coordinator
"""

import sys

from fedtalk_ray.commands.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
