"""What a step holds, allocation by allocation; on torch's meta device, where tensors have shapes and no values."""

import weakref
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows every storage that an operation makes, until it is freed: bytes alive now, and at most.

    What the models hold themselves is left out: a view of a weight is no new storage.
    """

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        held = (parameter for model in models for parameter in model.parameters())
        self._alive = {parameter.untyped_storage()._cdata for parameter in held}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._alive:
                storage = tensor.untyped_storage()
                self._alive.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return output

    def _free(self, address: int, size: int) -> None:
        self._alive.remove(address)
        self.now -= size
