"""Fused noise kernels for GPUs, in Triton, bit for bit equal to :mod:`esplug.noise.kernels.cpu`.

Starting a kernel takes longer than most tensors do, so one kernel processes all pieces of a chunk: a table tells each
program which rows and columns are its own. Every element is read and written once. Tests run the kernels on the CPU,
with ``TRITON_INTERPRET=1`` set before the import.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from esplug.noise import full_rank as noise
from esplug.noise import low_rank
from esplug.noise.kernels import triton_programs as programs
from esplug.noise.kernels.program_table import QUADS, PerturbPiece, ProgramTable, Words, as_words

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_BITS = {4: tl.int32, 2: tl.int16}
_MAX_FACTOR_BYTES = 2**28
_SIDE = 64
_SQUARE = _SIDE, _SIDE, 0  # tile of a program for low rank
_DEPTH = 16  # tensor cores sum at least this many products; a lower rank is padded with zeros

P = TypeVar("P")
KeyPairs: TypeAlias = Sequence[tuple[int, int]]
#: A slice or block to update: its weights, the flat index of its first element, each member's key, and the pitch.
UpdatePiece: TypeAlias = tuple[Tensor, int, Sequence[int], int]
#: A block of a matrix: its weights, first row and column, the matrix's columns, and each member's keys.
MatrixBlock: TypeAlias = tuple[Tensor, int, int, int, KeyPairs]
#: Perturbs pieces, given each piece's key, and the scale.
Perturb: TypeAlias = Callable[[Words, float], None]


def array(tensor: Tensor) -> Tensor:
    """Return a tensor as the kernels take it, in one or two dimensions; rows need not be contiguous."""
    return tensor.detach()


def flat(tensor: Tensor) -> Tensor:
    """Return a view of a contiguous tensor in one dimension."""
    return array(tensor.view(-1))


def perturb(master: Tensor, out: Tensor, start: int, key: int, scale: float, pitch: int = 0) -> None:
    """Write ``round(master + scale * eps)`` to ``out``; see :func:`esplug.noise.kernels.cpu.perturb`."""
    perturb_all([(master, out, start, key, pitch)], scale)


def update(master: Tensor, start: int, keys: Sequence[int], coefficients: Sequence[float], pitch: int = 0) -> None:
    """Add ``sum_k coefficients[k] * eps_k`` to ``master``; see :func:`esplug.noise.kernels.cpu.update`."""
    update_all([(master, start, keys, pitch)], coefficients)


def update_low_rank(
    master: Tensor, row: int, column: int, width: int, keys: KeyPairs, coefficients: Sequence[float], rank: int
) -> None:
    """Add ``sum_k coefficients[k] * eps_k`` of low rank; see :func:`esplug.noise.kernels.cpu.update_low_rank`."""
    update_low_rank_all([(master, row, column, width, keys)], coefficients, rank)


def checksum(master: Tensor, start: int, name: str, pitch: int = 0) -> int:
    """Return the checksum of a slice or block of a tensor; see :func:`esplug.noise.kernels.cpu.checksum`."""
    return checksum_all([(master, start, name, pitch)])[0]


def convert_all(pieces: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Write each piece to its target, rounded to the target's type, halves to even."""
    sources, targets = zip(*pieces, strict=True)
    torch._foreach_copy_(list(targets), list(sources))


def perturb_all(pieces: Iterable[tuple[Tensor, Tensor, int, int, int]], scale: float) -> None:
    """Perturb pieces, each (master, out, start, key, pitch); see :func:`perturb`."""
    pieces = list(pieces)
    keys = np.array([key for _, _, _, key, _ in pieces], dtype=np.uint64)
    prepared([(master, out, start, pitch) for master, out, start, _, pitch in pieces])(keys, scale)


def prepared(pieces: Sequence[PerturbPiece]) -> Perturb:
    """Lay out pieces (master, out, start, pitch), to perturb them again and again."""
    types = _grouped(range(len(pieces)), lambda number: (pieces[number][0].dtype, pieces[number][1].dtype))
    parts = [(np.array(numbers), Perturbation.of([pieces[number] for number in numbers])) for _, numbers in types]

    def perturb_them(keys: Words, scale: float) -> None:
        for numbers, part in parts:
            part.start(as_words(keys[numbers], part.table.owners.device), scale)

    return perturb_them


def update_all(pieces: Iterable[UpdatePiece], coefficients: Sequence[float]) -> None:
    """Update pieces, each (master, start, keys, pitch); see :func:`update`."""
    for master_type, alike in _grouped(pieces, lambda piece: piece[0].dtype):
        table = ProgramTable.of([(master, master, start, pitch) for master, start, _, pitch in alike])
        factors = torch.tensor(coefficients, dtype=torch.float32, device=table.owners.device)
        how = {"MASTER": _TYPES[master_type], "QUADS": QUADS, "ALIGNED": table.aligned}
        table.launch(
            programs.update, [key for _, _, keys, _ in alike for key in keys], factors, len(coefficients), **how
        )


def update_low_rank_all(pieces: Iterable[MatrixBlock], coefficients: Sequence[float], rank: int) -> None:
    """Update pieces, each (master, row, column, width, keys); see :func:`update_low_rank`.

    Factors are computed first, as float16 integers, for as many pieces at a time as their memory allows.
    """
    factors = torch.tensor(coefficients, dtype=torch.float32) * low_rank.scale(rank)
    per_side = 2 * len(coefficients) * rank
    blocks = (block for piece in pieces for block in _split(piece, per_side))
    for master_type, alike in _grouped(blocks, lambda block: block[0].dtype):
        nbytes = 0
        group: list[MatrixBlock] = []
        for block in alike:
            more = per_side * sum(block[0].shape)
            if group and nbytes + more > _MAX_FACTOR_BYTES:
                _update_with_factors(group, master_type, factors, rank)
                nbytes, group = 0, []
            group.append(block)
            nbytes += more
        _update_with_factors(group, master_type, factors, rank)


def _split(block: MatrixBlock, per_side: int) -> Iterator[MatrixBlock]:
    """Split a matrix into blocks whose factors, of ``per_side`` bytes per row and column, are not too large."""
    master, row, column, width, keys = block
    rows, columns = master.shape
    half_rows, half_columns = rows // 2, columns // 2
    if per_side * (rows + columns) <= _MAX_FACTOR_BYTES or max(rows, columns) <= _SIDE:
        yield block
    elif rows >= columns:
        yield from _split((master[:half_rows], row, column, width, keys), per_side)
        yield from _split((master[half_rows:], row + half_rows, column, width, keys), per_side)
    else:
        yield from _split((master[:, :half_columns], row, column, width, keys), per_side)
        yield from _split((master[:, half_columns:], row, column + half_columns, width, keys), per_side)


def _update_with_factors(pieces: Sequence[MatrixBlock], master_type: torch.dtype, factors: Tensor, rank: int) -> None:
    made = _factors(pieces, len(factors), rank)
    blocks = [(master, master, row * width + column, width) for master, row, column, width, _ in pieces]
    table = ProgramTable.of(blocks, _SQUARE)
    addresses = [tensor.data_ptr() for pair in made for tensor in pair]
    how = {"SIDE": _SIDE, "DEPTH": 1 if rank == 1 else _DEPTH, "ALIGNED": table.aligned}
    factors = factors.to(table.owners.device)
    table.launch(programs.update_low_rank, addresses, factors, len(factors), rank, MASTER=_TYPES[master_type], **how)


def _factors(pieces: Sequence[MatrixBlock], members: int, rank: int) -> list[tuple[Tensor, Tensor]]:
    """Return each block's factors: ``A``, float16[members, rank, columns], and ``B``, float16[members, rows, rank]."""
    made, blocks, keys = [], [], []
    for master, row, column, width, pairs in pieces:
        rows, columns = master.shape
        a = torch.empty(members, rank, columns, dtype=torch.float16, device=master.device)
        b = torch.empty(members, rows, rank, dtype=torch.float16, device=master.device)
        made.append((a, b))
        blocks += [(a[0], a[0], column, width), (b[0].view(1, -1), b[0].view(1, -1), row * rank, 0)]
        keys += [pair[which] for which in (0, 1) for pair in pairs]
    table = ProgramTable.of(blocks)
    table.launch(programs.fill, keys, members, times=members, QUADS=QUADS, ALIGNED=table.aligned)
    return made


def checksum_all(pieces: Sequence[tuple[Tensor, int, str, int]]) -> list[int]:
    """Return the checksum of each piece, (master, start, name, pitch); see :func:`checksum`."""
    sums = [0] * len(pieces)
    for itemsize, numbers in _grouped(range(len(pieces)), lambda number: pieces[number][0].itemsize):
        alike = [pieces[number] for number in numbers]
        table = ProgramTable.of([(master, master, start, pitch) for master, start, _, pitch in alike])
        parts = torch.zeros(table.programs, dtype=torch.int64, device=table.owners.device)
        hashes = [noise.hash64(name.encode()) for _, _, name, _ in alike]
        table.launch(programs.checksum, hashes, parts, BITS=_BITS[itemsize], BLOCK=4 * QUADS, num_warps=4)
        totals = torch.zeros(len(alike), dtype=torch.int64, device=parts.device)
        totals.index_add_(0, table.owners, parts)
        for number, total in zip(numbers, totals.tolist(), strict=True):
            sums[number] = total % 2**64
    return sums


def _grouped(pieces: Iterable[P], key: Callable[[P], Any]) -> Iterable[tuple[Any, list[P]]]:
    """Group pieces by a key, because a kernel processes weights of one type."""
    groups = defaultdict(list)
    for piece in pieces:
        groups[key(piece)].append(piece)
    return groups.items()


@dataclass(frozen=True, slots=True)
class Perturbation:
    """Pieces of one type, written to tensors of one type."""

    table: ProgramTable
    types: dict[str, Any]

    @classmethod
    def of(cls, pieces: Sequence[PerturbPiece]) -> "Perturbation":
        """Lay out pieces, as in :func:`prepared`."""
        master, out, *_ = pieces[0]
        return cls(ProgramTable.of(pieces), {"MASTER": _TYPES[master.dtype], "OUT": _TYPES[out.dtype]})

    def start(self, keys: Tensor, scale: float) -> None:
        """Start the kernel. ``keys`` are :func:`as_words` of each piece's."""
        how = self.types | {"QUADS": QUADS, "ALIGNED": self.table.aligned}
        self.table.launch(programs.perturb, keys, noise.float32(scale), **how)
