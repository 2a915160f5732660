"""Tables of the GPU kernels: which rows and columns of which piece each program processes."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import triton
from torch import Tensor

QUADS = 256  # groups of four elements in a program
#: A program's tile: rows, columns, and how many of the columns may be unused.
LINE = 1, 4 * QUADS, 3  # a row may begin inside a Philox block
_MAX_TABLES = 64

#: A slice or block to perturb: its weights, where to write them, the flat index of its first element, and the pitch.
PerturbPiece: TypeAlias = tuple[Tensor, Tensor, int, int]
Words: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]


def as_words(values: Words | Sequence[int], device: torch.device) -> Tensor:
    """Return unsigned words as the kernels take them: int64, of which they ignore the sign."""
    return torch.from_numpy(np.array(values, dtype=np.uint64).view(np.int64)).to(device)


@dataclass(frozen=True, slots=True)
class ProgramTable:
    """The piece, rows and columns of each program of a kernel.

    Attributes:
        owners: int32[programs], the piece of each.
        entries: int64[pieces, 10]: addresses of master and target, first element, pitch, columns, strides between the
            rows of both, programs per row, first program, and rows.
        aligned: whether every Philox block's four elements lie in one row, aligned for reading them together.
    """

    owners: Tensor
    entries: Tensor
    aligned: bool

    @property
    def programs(self) -> int:
        """Number of programs."""
        return self.owners.numel()

    @classmethod
    def of(cls, pieces: Sequence[PerturbPiece], tile: tuple[int, int, int] = LINE) -> "ProgramTable":
        """Return the table, perhaps a cached one, for pieces (master, out, start, pitch) and programs of a ``tile``."""
        device = pieces[0][0].device
        height, width, unused = tile
        layouts = ((m.data_ptr(), out.data_ptr(), m.shape, m.stride(), out.stride(), *rest) for m, out, *rest in pieces)
        known: Hashable = (device, tile, *layouts)
        if known not in _tables:
            entries: list[list[int]] = []
            counts: list[int] = []
            for master, out, start, pitch in ((_rows(each[0]), _rows(each[1]), *each[2:]) for each in pieces):
                rows, columns = master.shape
                per_row = triton.cdiv(columns + unused, width)
                layout = master.data_ptr(), out.data_ptr(), start, pitch, columns, master.stride(0), out.stride(0)
                entries.append([*layout, per_row, sum(counts), rows])
                counts.append(triton.cdiv(rows, height) * per_row)
            owners = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(torch.tensor(counts))
            if len(_tables) >= _MAX_TABLES:
                _tables.pop(next(iter(_tables)))
            aligned = all(_aligned(*piece) for piece in pieces)
            _tables[known] = cls(owners.to(device), torch.tensor(entries, dtype=torch.int64).to(device), aligned)
        return _tables[known]

    def launch(
        self,
        kernel: Any,
        words: Tensor | Sequence[int],
        *arguments: Any,
        times: int = 1,
        num_warps: int = 2,
        **constants: Any,
    ) -> None:
        """Start a kernel, ``times`` each program, with :func:`as_words` of ``words``."""
        given = words if isinstance(words, Tensor) else as_words(words, self.owners.device)
        options = constants | {"num_warps": num_warps, "enable_fp_fusion": False}
        with torch.cuda.device_of(given):  # type: ignore[no-untyped-call]
            kernel[(self.programs * times,)](self.owners, self.entries, given, *arguments, **options)


_tables: dict[Hashable, ProgramTable] = {}


def _aligned(master: Tensor, out: Tensor, start: int, pitch: int) -> bool:
    in_fours = start % 4 == 0 and master.shape[-1] % 4 == 0 and (master.ndim == 1 or pitch % 4 == 0)
    return in_fours and all(
        tensor.data_ptr() % (4 * tensor.itemsize) == 0 and (tensor.ndim == 1 or tensor.stride(0) % 4 == 0)
        for tensor in (master, out)
    )


def _rows(tensor: Tensor) -> Tensor:
    """Return a slice as a block of one row."""
    return tensor if tensor.ndim == 2 else tensor.view(1, -1)
