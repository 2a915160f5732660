"""Partition of master weights: blocks of ranks, fused tensors, and chunks for threads or GPU kernels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import torch

    from esplug.noise.kernels.cpu import Array


@dataclass(frozen=True, slots=True)
class TensorBlock:
    """The part of a checkpoint tensor that a tensor-parallel rank keeps.

    Rows run along the tensor's first dimension, columns along all others together. A vector is a single column.

    Attributes:
        rows: first row, and the row after the last.
        columns: first column, and the column after the last.
        counted: whether this rank, of those that keep the block, adds it to checksums and saves it.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    counted: bool = True

    @classmethod
    def whole(cls, shape: Sequence[int], *, counted: bool = True) -> "TensorBlock":
        """Return the block that is the whole tensor."""
        return cls((0, shape[0] if shape else 1), (0, math.prod(shape[1:])), counted)

    def of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the block's shape within a tensor of this shape."""
        height, width = self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]
        if self.is_contiguous(shape):
            return (height, *shape[1:]) if shape else ()
        return height, width

    def cut(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """Return a view of the block in the whole tensor."""
        if self.of(tensor.shape) == tensor.shape:
            return tensor.detach()
        if self.is_contiguous(tensor.shape):
            return tensor.detach()[slice(*self.rows)]
        return tensor.detach().flatten(1)[slice(*self.rows), slice(*self.columns)]

    def first(self, shape: Sequence[int]) -> int:
        """Return the flat index of the block's first element within a tensor of this shape."""
        return self.rows[0] * math.prod(shape[1:]) + self.columns[0]

    def is_contiguous(self, shape: Sequence[int]) -> bool:
        """Return whether the block's elements are contiguous in the tensor."""
        return self.columns == (0, math.prod(shape[1:]))


class Piece(NamedTuple):
    """Elements of one tensor, as the kernels take them."""

    name: str
    elements: "Array"  # a matrix
    first: int  # flat index of the first element in the tensor
    pitch: int  # distance between the starts of two rows in the tensor, in elements


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """Units ``start .. stop`` of the block of tensor ``name``; see :attr:`BlockView.units`."""

    name: str
    start: int
    stop: int


Chunk: TypeAlias = list[TensorSlice]  # slices that one thread, or one GPU kernel, processes together


@dataclass(frozen=True, slots=True)
class BlockView:
    """A tensor's block, as the kernels take it; ``first`` and ``pitch`` as in :class:`Piece`."""

    matrix: "Array"  # the block's elements, in a single row if they are contiguous in the tensor
    shape: tuple[int, ...]  # of the block
    first: int
    pitch: int

    @property
    def units(self) -> tuple[int, int]:
        """Number of units that the block can be sliced into, and elements in each: one element, or those of a row."""
        rows, columns = self.matrix.shape
        return (columns, 1) if rows == 1 else (rows, columns)

    def piece(self, part: TensorSlice) -> Piece:
        """Return the elements of a slice."""
        if len(self.matrix) == 1:
            return Piece(part.name, self.matrix[:, part.start : part.stop], self.first + part.start, self.pitch)
        rows = self.matrix[part.start : part.stop]
        return Piece(part.name, rows, self.first + part.start * self.pitch, self.pitch)


@dataclass(frozen=True, slots=True)
class FusedLayout:
    """Groups of tensors that are written end to end, each as one fused tensor."""

    groups: dict[str, tuple[str, ...]]  # names of each group's tensors, in the order in which they are written
    shapes: dict[str, tuple[int, ...]]  # of the fused tensors
    places: dict[str, tuple[str, int]]  # each tensor's group, and the flat index in the fused tensor where it begins
    chunks: list[Chunk]  # of all groups, in that order
    last_chunk: dict[str, int]  # number of the chunk that completes a group; an empty group has none

    @classmethod
    def of(cls, groups: Mapping[str, Sequence[str]], views: Mapping[str, BlockView], elements: int) -> "FusedLayout":
        """Lay out each group's tensors along their first dimension, in chunks of about ``elements``."""
        shapes: dict[str, tuple[int, ...]] = {}
        places: dict[str, tuple[str, int]] = {}
        for group, names in groups.items():
            parts = [views[name].shape for name in names]
            if len({part[1:] for part in parts}) != 1 or (len(parts) > 1 and not all(parts)):
                raise ValueError(f"{group}: the shapes of {', '.join(names)} do not fit together")
            size = 0
            for name in names:
                if name in places:
                    raise ValueError(f"{group}: {name} is already in another group")
                places[name] = group, size
                size += math.prod(views[name].matrix.shape)
            rows = (sum(part[0] for part in parts),) if parts[0] else ()
            shapes[group] = (*rows, *parts[0][1:])
        chunks = split_into_chunks({name: views[name].units for name in places}, elements)
        last = {places[part.name][0]: number for number, chunk in enumerate(chunks) for part in chunk}
        return cls({group: tuple(names) for group, names in groups.items()}, shapes, places, chunks, last)


def split_into_chunks(units: Mapping[str, tuple[int, int]], elements: int) -> list[Chunk]:
    """Split tensors, laid end to end, into chunks of about ``elements``: several small tensors or part of a large one.

    ``units`` are those of each tensor's :class:`BlockView`.
    """
    chunks: list[Chunk] = []
    left = 0
    for name, (count, size) in units.items():
        start = 0
        while start < count and size:
            if left <= 0:
                chunks.append([])
                left = elements
            stop = min(count, start + max(1, left // size))
            chunks[-1].append(TensorSlice(name, start, stop))
            left -= (stop - start) * size
            start = stop
    return chunks
