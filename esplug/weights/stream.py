"""Tensor stream: computes a member's tensors chunk by chunk, and yields each once it is complete."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from esplug.weights.partition import FusedLayout, Piece, TensorSlice
from esplug.weights.tensors import MasterTensors
from esplug.weights.work_pool import WorkPool

if TYPE_CHECKING:
    from esplug.noise.kernels.cpu import Array

    Write: TypeAlias = tuple[Piece, Array]
    """A piece of the master, and the array to write it to."""

_LOOKAHEAD_BYTES = 256 * 2**20


class TensorStream:
    """Yields (name, tensor), and bounds the memory of tensors that the consumer has not taken yet.

    Iterate over it once.

    Args:
        tensors: the master's.
        layout: of the tensors to write.
        dtype: of the floating-point tensors, or ``None`` for the checkpoint's own.
        into: tensors to overwrite instead of allocating new ones.
        fused: yield the layout's groups only, and compute nothing while the consumer has one. Otherwise the stream
            yields all tensors, and computes the next ones in the meantime.
        pool: runs the kernels.
        flat: from the kernels.
        write: computes the pieces of a chunk.
    """

    def __init__(
        self,
        tensors: MasterTensors,
        layout: FusedLayout,
        dtype: torch.dtype | None,
        into: Mapping[str, torch.Tensor],
        *,
        fused: bool,
        pool: WorkPool,
        flat: Callable[[torch.Tensor], Any],
        write: "Callable[[list[Write]], None]",
    ) -> None:
        self._tensors, self._layout, self._dtype, self._into, self._fused = tensors, layout, dtype, into, fused
        self._pool, self._flat, self._write = pool, flat, write
        self._targets: dict[str, torch.Tensor] = {}
        self._running: deque[Future[None]] = deque()
        self._submitted = self._finished = self._bytes_ahead = 0

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        layout = self._layout
        try:
            for group in layout.groups if self._fused else self._tensors.kept:
                if group not in layout.groups:
                    yield group, self._tensors.kept[group].clone()
                    continue
                last = layout.last_chunk.get(group, -1)
                self._submit(last)
                self._wait_for(self._submitted - 1 if self._fused else last)
                self._target(group)  # an empty tensor is in no chunk
                self._bytes_ahead -= self._targets[group].nbytes
                yield group, self._targets.pop(group)
        finally:
            for future in self._running:
                future.cancel()
            wait(self._running)

    def _submit(self, last: int) -> None:
        """Submit the chunks up to number ``last``, and further ones as far as the look-ahead allows."""
        chunks = self._layout.chunks
        look_ahead = not self._fused or self._submitted <= last
        while self._submitted < len(chunks) and (
            self._submitted <= last or (look_ahead and self._bytes_ahead < _LOOKAHEAD_BYTES)
        ):
            writes = [self._write_of(part) for part in chunks[self._submitted]]
            self._running.append(self._pool.submit(self._write, writes))
            self._submitted += 1

    def _wait_for(self, last: int) -> None:
        """Wait for the chunks up to number ``last``."""
        while self._finished <= last:
            self._running.popleft().result()
            self._finished += 1

    def _write_of(self, part: TensorSlice) -> "Write":
        group, offset = self._layout.places[part.name]
        view = self._tensors.views[part.name]
        piece = view.piece(part)
        begin = offset + part.start * view.units[1]
        shape = piece.elements.shape
        return piece, self._flat(self._target(group))[begin : begin + math.prod(shape)].reshape(shape)

    def _target(self, group: str) -> torch.Tensor:
        """Return the tensor that a group is written to; allocate it at first."""
        if group not in self._targets:
            dtype = self._tensors.written_dtype(self._layout.groups[group][0], self._dtype)
            given = self._into.get(group)
            target = self._tensors.empty(self._layout.shapes[group], dtype) if given is None else given
            self._targets[group] = target
            self._bytes_ahead += target.nbytes
        return self._targets[group]
