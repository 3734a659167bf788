"""How long to train, and the step that every pretraining loop takes."""

from collections.abc import Iterator
from math import cos, pi
from time import monotonic

import torch


def budget(steps: int | None, seconds: float | None) -> Iterator[float]:
    """Yields the share of the work that is done, from 0 towards 1: after so many steps or so many seconds of time."""
    start, step = monotonic(), 0
    while True:
        done = step / steps if steps is not None else (monotonic() - start) / (seconds or 1.0)
        if done >= 1:
            return
        yield done
        step += 1


def optimise(optimiser: torch.optim.Optimizer, module: torch.nn.Module, loss: torch.Tensor, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimiser.step()


def cosine(done: float) -> float:
    return 0.5 * (1 + cos(pi * done))
