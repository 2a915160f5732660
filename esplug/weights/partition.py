"""How master weights are cut: what a process keeps of a tensor, what is written as one, and pieces for threads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from esplug.noise.kernels.cpu import Array


@dataclass(frozen=True, slots=True)
class TensorBlock:
    """The part of a checkpoint's tensor that a tensor-parallel rank keeps.

    The tensor is seen as a matrix of its first dimension by all others; one of a single dimension is a column.

    Attributes:
        rows: the first one, and that behind the last.
        columns: likewise.
        counted: whether this rank, among those that keep these weights, adds them to checksums and writes them.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    counted: bool = True

    @classmethod
    def whole(cls, shape: Sequence[int], *, counted: bool = True) -> "TensorBlock":
        """Return all of a tensor."""
        return cls((0, shape[0] if shape else 1), (0, math.prod(shape[1:])), counted)

    def of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the block's own shape within a tensor of this shape."""
        height, width = self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]
        if width == math.prod(shape[1:]):
            return (height, *shape[1:]) if shape else ()
        return height, width

    def first(self, shape: Sequence[int]) -> int:
        """Return the flat index of the block's first element within a tensor of this shape."""
        return self.rows[0] * math.prod(shape[1:]) + self.columns[0]

    def end_to_end(self, shape: Sequence[int]) -> bool:
        """Say whether the block's elements lie one behind the other in the tensor."""
        return self.columns == (0, math.prod(shape[1:]))


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor's block as the kernels take it.

    Attributes:
        matrix: a single row, where the block's elements lie end to end in the tensor.
        first: flat index of its first element in the tensor.
        pitch: elements from one row to the next in the tensor.
    """

    matrix: "Array"
    first: int
    pitch: int

    @property
    def units(self) -> tuple[int, int]:
        """Into how many pieces it can be cut at most, and how many elements each has: one, or those of a row."""
        rows, columns = self.matrix.shape
        return (columns, 1) if rows == 1 else (rows, columns)

    def piece(self, stretch: "Stretch") -> "tuple[Array, int]":
        """Return the stretch's elements, and the flat index of the first one in the tensor."""
        if len(self.matrix) == 1:
            return self.matrix[:, stretch.start : stretch.stop], self.first + stretch.start
        return self.matrix[stretch.start : stretch.stop], self.first + stretch.start * self.pitch


@dataclass(frozen=True, slots=True)
class Stretch:
    """Units ``start .. stop`` of what is kept of a tensor."""

    name: str
    start: int
    stop: int


Job: TypeAlias = list[Stretch]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which tensors are written end to end as one, and in what pieces; see ``MasterWeights.fused``.

    Attributes:
        groups: the tensors of each, in the order in which they are written.
        shapes: of what is written.
        places: in which group a tensor is, and from which element.
        jobs: pieces of equal size, in that order.
        last_job: after which one of them a group is complete.
    """

    groups: dict[str, tuple[str, ...]]
    shapes: dict[str, tuple[int, ...]]
    places: dict[str, tuple[str, int]]
    jobs: list[Job]
    last_job: dict[str, int]


def plan(units: Mapping[str, tuple[int, int]], elements: int) -> list[Job]:
    """Cut tensors, laid end to end, into jobs of equal size: several small tensors or a part of a large one.

    Args:
        units: of each tensor, as :attr:`Kept.units` gives them.
        elements: in a job.
    """
    jobs: list[Job] = []
    room = 0
    for name, (count, size) in units.items():
        start = 0
        while start < count and size:
            if room <= 0:
                jobs.append([])
                room = elements
            stop = min(count, start + max(1, room // size))
            jobs[-1].append(Stretch(name, start, stop))
            room -= (stop - start) * size
            start = stop
    return jobs
