"""Tensor stream: computes a member's tensors chunk by chunk, and yields each once it is complete."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from esplug.weights.partition import FusedLayout, Piece, TensorSlice
from esplug.weights.tensors import MasterTensors
from esplug.weights.work_pool import WorkPool

if TYPE_CHECKING:
    from esplug.noise.kernels.cpu import Array

    Write: TypeAlias = tuple[Piece, Array]  # a piece of the master, and the array to write it to

_LOOKAHEAD_BYTES = 256 * 2**20


def write_of(part: TensorSlice, tensors: MasterTensors, layout: FusedLayout, target: Any) -> "Write":
    """Return a slice of the master and its place in the flat ``target`` of its group."""
    view = tensors.views[part.name]
    piece = view.piece(part)
    begin = layout.places[part.name][1] + part.start * view.units[1]
    shape = piece.elements.shape
    return piece, target[begin : begin + math.prod(shape)].reshape(shape)


@dataclass(eq=False)
class TensorStream:
    """Yields (name, tensor), and bounds the memory of tensors that the consumer has not taken yet.

    Iterate over it once.
    """

    tensors: MasterTensors
    layout: FusedLayout
    dtype: torch.dtype | None  # of the floating-point tensors; None for the checkpoint's own
    into: Mapping[str, torch.Tensor]  # tensors to overwrite instead of allocating new ones
    fused: bool  # yield the layout's groups only, and compute nothing while the consumer has one
    pool: WorkPool
    flat: Callable[[torch.Tensor], Any]  # from the kernels
    write: "Callable[[list[Write]], None]"  # computes the pieces of a chunk

    def __post_init__(self) -> None:
        self._targets: dict[str, torch.Tensor] = {}
        self._running: deque[Future[None]] = deque()
        self._submitted = self._finished = self._bytes_ahead = 0

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        try:
            for group in self.layout.groups if self.fused else self.tensors.kept:
                if group not in self.layout.groups:
                    yield group, self.tensors.kept[group].clone()
                    continue
                last = self.layout.last_chunk.get(group, -1)
                self._submit(last)
                self._wait_for(self._submitted - 1 if self.fused else last)
                self._target(group)  # an empty tensor is in no chunk
                self._bytes_ahead -= self._targets[group].nbytes
                yield group, self._targets.pop(group)
        finally:
            for future in self._running:
                future.cancel()
            wait(self._running)

    def _submit(self, last: int) -> None:
        """Submit the chunks up to number ``last``, and further ones as far as the look-ahead allows."""
        chunks = self.layout.chunks
        look_ahead = not self.fused or self._submitted <= last
        while self._submitted < len(chunks) and (
            self._submitted <= last or (look_ahead and self._bytes_ahead < _LOOKAHEAD_BYTES)
        ):
            writes = [self._write_of(part) for part in chunks[self._submitted]]
            self._running.append(self.pool.submit(self.write, writes))
            self._submitted += 1

    def _wait_for(self, last: int) -> None:
        """Wait for the chunks up to number ``last``."""
        while self._finished <= last:
            self._running.popleft().result()
            self._finished += 1

    def _write_of(self, part: TensorSlice) -> "Write":
        target = self.flat(self._target(self.layout.places[part.name][0]))
        return write_of(part, self.tensors, self.layout, target)

    def _target(self, group: str) -> torch.Tensor:
        """Return the tensor that a group is written to; allocate it at first."""
        if group not in self._targets:
            dtype = self.tensors.written_dtype(self.layout.groups[group][0], self.dtype)
            target = self.into.get(group)
            if target is None:
                target = self.tensors.empty(self.layout.shapes[group], dtype)
            self._targets[group] = target
            self._bytes_ahead += target.nbytes
        return self._targets[group]
