"""Where a command computes: on a GPU where there is one, unless it is told."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def pick_device(name: str = "auto") -> str:
    """ "auto" as "cuda" or "cpu", anything else as it is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def has_bf16(device: str) -> bool:
    """Whether a device computes in bfloat16 natively, and so faster: GPUs since 2020, CPUs with AVX512-BF16 or AMX.
    False for a CPU of which torch does not say."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    if kind != "cpu":
        return False
    says: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(says.get("avx512_bf16") or says.get("amx_bf16"))


def fast_arithmetic(device: str, wanted: bool = True) -> AbstractContextManager[Any]:
    """Networks compute in bf16 in this context, where that is wanted and the device has it."""
    if not (wanted and has_bf16(device)):
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)
