"""Record of which tensors vLLM reads when it reloads its model. It ignores names that its model does not know."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class ReadTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, notes which of the tensors from :meth:`watch` any operation uses.

    Attributes:
        unread: names of tensors that no operation has used.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pending: dict[int, str] = {}  # by address
        self._unread: list[str] = []

    @property
    def unread(self) -> list[str]:
        """Names of tensors that no operation has used."""
        return [*self._unread, *self._pending.values()]

    def watch(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Pass tensors on, and watch them."""
        for name, tensor in tensors:
            if tensor.numel() and tensor.is_floating_point():
                place = tensor.untyped_storage().data_ptr()
                if place in self._pending:  # the memory of a tensor that was dropped
                    self._unread.append(self._pending.pop(place))
                self._pending[place] = name
            yield name, tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in tree_leaves((args, kwargs or {})):
            if isinstance(each, torch.Tensor) and each.device.type != "meta":
                self._pending.pop(each.untyped_storage().data_ptr(), None)
        return func(*args, **(kwargs or {}))
