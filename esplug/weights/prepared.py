"""Prepared writes: all pieces of a model laid out once, so that a GPU writes each member with one kernel.

Laying out the pieces takes Python longer than the kernel takes the GPU.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from esplug.noise.full_rank import tensor_key
from esplug.weights.partition import FusedLayout
from esplug.weights.stream import write_of
from esplug.weights.tensors import MasterTensors


class PreparedWrites:
    """Writes members into the same tensors again and again.

    Args:
        tensors: of the master.
        layout: the groups to write.
        into: a contiguous tensor for each group.
        kernels: :mod:`esplug.noise.kernels.cuda`.
    """

    def __init__(
        self, tensors: MasterTensors, layout: FusedLayout, into: Mapping[str, torch.Tensor], kernels: Any
    ) -> None:
        self._layout, self._addresses, self._convert = layout, _addresses(into), kernels.convert_all
        targets = {group: kernels.flat(tensor) for group, tensor in into.items()}
        writes = [
            write_of(part, tensors, layout, targets[layout.places[part.name][0]])
            for chunk in layout.chunks
            for part in chunk
        ]
        self._names = list(layout.places)
        numbers = {name: number for number, name in enumerate(self._names)}
        self._owners = np.array([numbers[piece.name] for piece, _ in writes], dtype=np.int64)
        self._pieces = [(piece.elements, out) for piece, out in writes]
        self._perturb = kernels.prepared([(piece.elements, out, piece.first, piece.pitch) for piece, out in writes])

    def is_for(self, layout: FusedLayout, into: Mapping[str, torch.Tensor]) -> bool:
        """Return whether this writes a layout into these tensors."""
        return layout is self._layout and _addresses(into) == self._addresses

    def write(self, member_seed: int | None, scale: float) -> None:
        """Write ``round(master + scale * eps(member_seed))``, or the rounded master without a seed."""
        if not self._pieces:
            return
        if member_seed is None:
            self._convert(self._pieces)
        else:
            keys = np.array([tensor_key(member_seed, name) for name in self._names], dtype=np.uint64)
            self._perturb(keys[self._owners], scale)


def _addresses(into: Mapping[str, torch.Tensor]) -> list[tuple[str, int, torch.dtype]]:
    return [(group, tensor.data_ptr(), tensor.dtype) for group, tensor in into.items()]
