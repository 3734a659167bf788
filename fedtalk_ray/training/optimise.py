"""Optimiser steps, the same in every phase: those of one client in one round.

An optimiser's state does not outlive the round: what a client computes depends on the shared vector and its own clips
alone.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal

import numpy as np
import torch

from fedtalk_ray.recipe import BETAS

Loss = tuple[torch.Tensor, dict[str, float]]
"""What is minimised, a scalar, and its terms for the logs."""


def descend(
    trained: list[torch.nn.Parameter],
    losses: Iterator[Loss],
    steps: int,
    rate: Callable[[int], float],
    *,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    accumulate: int = 1,
    proximal: float = 0.0,
    tick: Callable[[dict[str, float]], None] = lambda _: None,
) -> dict[str, float]:
    """Steps on the parameters, in place; returns the mean terms.

    losses: one for each of `accumulate` micro-steps, made when it is asked for. clip_norm: of the gradients. proximal:
    FedProx's mu. Raises `ValueError` when the losses end before the steps do.
    """
    anchors = [parameter.detach().clone() for parameter in trained] if proximal else []
    made: torch.optim.Optimizer
    if optimizer == "sgd":
        made = torch.optim.SGD(trained, lr=rate(0))
    else:
        made = torch.optim.AdamW(trained, lr=rate(0), betas=BETAS, weight_decay=weight_decay)
    history: list[dict[str, float]] = []
    for step in range(steps):
        for group in made.param_groups:
            group["lr"] = rate(step)
        made.zero_grad(set_to_none=True)
        parts: list[dict[str, float]] = []
        for loss, terms in islice(losses, accumulate):
            (loss / accumulate).backward()
            parts.append(terms)
        if len(parts) < accumulate:
            raise ValueError(f"the stream ended after {len(history)} of {steps} steps")
        # FedProx (Li et al. 2020): the gradient of mu / 2 * ||theta - theta_round||^2.
        for parameter, anchor in zip(trained, anchors, strict=False):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=proximal)
        torch.nn.utils.clip_grad_norm_(trained, clip_norm)
        made.step()
        history.append({name: float(np.mean([part[name] for part in parts])) for name in parts[0]})
        tick(history[-1])
    return {name: float(np.mean([terms[name] for terms in history])) for name in history[0]}
