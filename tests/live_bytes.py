"""How many bytes of tensors are alive at once: what a forward pass needs beside its weights, on any device.

On the meta device nothing is computed, so the peak of a 14B model is known in a second.
"""

import weakref
from collections.abc import Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside: `peak` follows the storages that operators make, not those of `known` tensors."""

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]  # kept, so that no address comes twice
        self._addresses = {storage._cdata for storage in self._known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._addresses:
            return
        self._addresses.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, address: int, num_bytes: int) -> None:
        self._addresses.discard(address)
        self.live -= num_bytes
