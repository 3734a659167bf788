"""Where a command computes: on a GPU where there is one, unless it is told."""

import torch


def pick_device(name: str = "auto") -> str:
    """ "auto" as "cuda" or "cpu", anything else as it is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
