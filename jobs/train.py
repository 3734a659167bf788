"""Federated training, as a Ray job or by hand. Read on in `fedtalk_ray/rounds.py`, then in `fedtalk_ray/training/`.

ray job submit --working-dir . -- python jobs/train.py jobs/configs/grid.yaml run=runs/grid
python jobs/train.py jobs/configs/grid.yaml rounds=10 strategy.name=fedavg
"""

import sys

from fedtalk_ray.config import load_config
from fedtalk_ray.errors import UserError
from fedtalk_ray.rounds import train


def main(arguments: list[str]) -> None:
    """CONFIG.yaml [key=value ...] [--resume]"""
    resume = "--resume" in arguments
    positional = [argument for argument in arguments if argument != "--resume"]
    if not positional:
        sys.exit(f"usage: python jobs/train.py {main.__doc__}")
    path, *overrides = positional
    config = load_config(path, overrides)
    run = train(config, resume)
    print(f"run: {run}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"jobs/train.py: {error}")
