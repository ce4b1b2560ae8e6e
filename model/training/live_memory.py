"""How many bytes of tensors are alive while code runs: on any device, also on torch's meta device, which has no memory."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the storages that operations made inside the context and that are still alive; `peak` is the most.

    Only storages of one device type count. What existed before does not.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device, self._alive = device, dict[int, int]()
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        known = {self._key(each) for each in tree_leaves((arguments, options)) if isinstance(each, Tensor)}
        result = function(*arguments, **(options or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.device.type == self._device and self._key(each) not in known:
                self._add(each)
        return result

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


def bytes_of(tensors: Any) -> int:
    """Return the bytes of tensors, each once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(t): t for t in tensors}.values())
