"""Local training in a slot against the bare step: the real denoiser, one client, the same windows.

python jobs/benchmarks/slot_steps.py --shards shards/drawn
python jobs/benchmarks/slot_steps.py --shards shards/drawn --pretrained models/grid --steps 40

bare is a loop written out in PyTorch over batches that lie in memory: loss, backward, gradient norm, AdamW. slot is one
`fit` call of a client slot in a Ray actor: it streams the client's shards, trains, and writes the client's state. Both
take turns, with a slot's environment, for which this starts itself again. CPU is the seconds of the process that
trains, wall those that the caller waits. Ratios are of step rates.
"""

import argparse
import os
import sys
import tempfile
import time
from statistics import median
from typing import Any

import ray
import torch

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.actors.connection import WORKER_ENVIRONMENT, connect
from fedtalk_ray.actors.pool import SlotPool
from fedtalk_ray.config import parse_config
from fedtalk_ray.model import adapters
from fedtalk_ray.progress import progress
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import people_of
from fedtalk_ray.training.losses import window_loss


class Measured(ClientSlot):
    """A client slot that tells its process's CPU seconds."""

    def cpu(self) -> float:
        return time.process_time()


class Bare:
    """The same model in this process, and a loop over batches in memory."""

    def __init__(self, config: TrainConfig, client: str) -> None:
        slot = ClientSlot(config)
        self.shared, self._config, self._trainer = slot.start(), config, slot._model.trainer
        local = config.local
        batches = people_of(config).batches(
            client,
            window=slot._model.trainer.window,
            windows=local.steps * local.batch_size,
            batch_size=local.batch_size,
            seed=1,
            stream=config.stream,
        )
        self._batches = list(batches)[: local.steps]

    def run(self) -> None:
        local, trainer = self._config.local, self._trainer
        trainer.load(self.shared, None)
        trained = adapters.train_only(trainer.model, trainer.shared())
        optimiser = torch.optim.AdamW(trained, lr=local.learning_rate, weight_decay=0.0)
        generator = torch.Generator().manual_seed(0)
        trainer.model.train()
        for batch in self._batches:
            optimiser.zero_grad(set_to_none=True)
            terms = window_loss(trainer.model, trainer.scheduler, batch, local.loss, generator)
            terms.total.backward()
            torch.nn.utils.clip_grad_norm_(trained, local.clip_norm)
            optimiser.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", required=True)
    parser.add_argument("--pretrained", default="fedtalk-tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    if not WORKER_ENVIRONMENT.items() <= os.environ.items():
        # Both sides alike: some of it counts from a process's first moment.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | WORKER_ENVIRONMENT)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tree: dict[str, Any] = {
            "run": folder,
            "shards": chosen.shards,
            "pretrained": chosen.pretrained,
            "phases": ["faces"],
            "aggregation": "plain",
            "strategy": {"name": "uniform"},
            "local": {"steps": chosen.steps, "identity_steps": 0},
            "slots": {"count": 1},
            "address": "local",
        }
        config = parse_config(tree, "benchmark")
        client = load_manifest(config.shards).clients()[0]
        bare = Bare(config, client)
        connect(config.address)
        pool = SlotPool(config, Measured)
        slot, shared = pool.ready[0], ray.put(bare.shared)
        ratios: dict[str, list[float]] = {"CPU": [], "wall": []}
        seconds: dict[str, list[float]] = {"bare": [], "slot": []}
        for number in progress(range(chosen.repeats + 1), chosen.repeats + 1, "take turns"):
            before = time.process_time(), time.perf_counter()
            bare.run()
            ours = time.process_time() - before[0], time.perf_counter() - before[1]
            before = ray.get(slot.call("cpu")), time.perf_counter()
            ray.get(slot.call("fit", [client], number + 1, shared, number + 1, returns=2))
            theirs = ray.get(slot.call("cpu")) - before[0], time.perf_counter() - before[1]
            if number:  # the first turn warms both up
                ratios["CPU"].append(ours[0] / theirs[0])
                ratios["wall"].append(ours[1] / theirs[1])
                seconds["bare"].append(ours[0] / chosen.steps)
                seconds["slot"].append(theirs[0] / chosen.steps)
        pool.close()
    print("| CPU s a step, bare | in a slot | step rate over bare, CPU | wall | repeats |")
    print("|---|---|---|---|---|")
    print(
        f"| {median(seconds['bare']):.3f} | {median(seconds['slot']):.3f} | {median(ratios['CPU']):.2f} "
        f"({min(ratios['CPU']):.2f} to {max(ratios['CPU']):.2f}) | {median(ratios['wall']):.2f} | {chosen.repeats} |"
    )


if __name__ == "__main__":
    main()
