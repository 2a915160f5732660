"""Fused noise kernels for GPUs, in Triton, bit for bit equal to :mod:`esplug.noise.kernels.cpu`.

Starting a kernel takes longer than most tensors do, so one kernel processes all pieces of a chunk: a table tells each
program which rows and columns are its own. Every element is read and written once. Every product and sum is rounded, so
Triton must not fuse them. Tests run the kernels on the CPU, with ``TRITON_INTERPRET=1`` set before the import.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from esplug.noise import full_rank as noise
from esplug.noise import low_rank

_QUADS = 256  # groups of four elements in a program
_CENTRE = tl.constexpr(float(2**23 + noise.MEAN))
_SCALE = tl.constexpr(noise.SCALE)
_ROUNDS = tl.constexpr(noise.ROUNDS)
_M0, _M1 = tl.constexpr(noise.MULTIPLIERS[0]), tl.constexpr(noise.MULTIPLIERS[1])
_STEP0, _STEP1 = tl.constexpr(noise.KEY_STEPS[0]), tl.constexpr(noise.KEY_STEPS[1])
# The interpreter rounds to bfloat16 differently from GPUs.
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_BITS = {4: tl.int32, 2: tl.int16}
_MAX_TABLES = 64
_MAX_FACTOR_BYTES = 2**28
# A program's tile: rows, columns, and how many of the columns may be unused.
_LINE = 1, 4 * _QUADS, 3  # a row may begin inside a Philox block
_SIDE = 64
_SQUARE = _SIDE, _SIDE, 0  # for low rank
_DEPTH = 16  # tensor cores sum at least this many products; a lower rank is padded with zeros

P = TypeVar("P")
KeyPairs: TypeAlias = Sequence[tuple[int, int]]
#: A slice or block to update: its weights, the flat index of its first element, each member's key, and the pitch.
UpdatePiece: TypeAlias = tuple[Tensor, int, Sequence[int], int]
#: A block of a matrix: its weights, first row and column, the matrix's columns, and each member's keys.
MatrixBlock: TypeAlias = tuple[Tensor, int, int, int, KeyPairs]
#: A slice or block to perturb: its weights, where to write them, the flat index of its first element, and the pitch.
PerturbPiece: TypeAlias = tuple[Tensor, Tensor, int, int]
Words: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]
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


def as_words(values: Words | Sequence[int], device: torch.device) -> Tensor:
    """Return unsigned words as the kernels take them: int64, of which they ignore the sign."""
    return torch.from_numpy(np.array(values, dtype=np.uint64).view(np.int64)).to(device)


def update_all(pieces: Iterable[UpdatePiece], coefficients: Sequence[float]) -> None:
    """Update pieces, each (master, start, keys, pitch); see :func:`update`."""
    for master_type, alike in _grouped(pieces, lambda piece: piece[0].dtype):
        table = _Table.of([(master, master, start, pitch) for master, start, _, pitch in alike])
        factors = torch.tensor(coefficients, dtype=torch.float32, device=table.owners.device)
        how = {"MASTER": _TYPES[master_type], "QUADS": _QUADS, "ALIGNED": table.aligned}
        table.launch(_update, [key for _, _, keys, _ in alike for key in keys], factors, len(coefficients), **how)


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
    table = _Table.of(blocks, _SQUARE)
    addresses = [tensor.data_ptr() for pair in made for tensor in pair]
    how = {"SIDE": _SIDE, "DEPTH": 1 if rank == 1 else _DEPTH, "ALIGNED": table.aligned}
    factors = factors.to(table.owners.device)
    table.launch(_update_low_rank, addresses, factors, len(factors), rank, MASTER=_TYPES[master_type], **how)


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
    table = _Table.of(blocks)
    table.launch(_fill, keys, members, times=members, QUADS=_QUADS, ALIGNED=table.aligned)
    return made


def checksum_all(pieces: Sequence[tuple[Tensor, int, str, int]]) -> list[int]:
    """Return the checksum of each piece, (master, start, name, pitch); see :func:`checksum`."""
    sums = [0] * len(pieces)
    for itemsize, numbers in _grouped(range(len(pieces)), lambda number: pieces[number][0].itemsize):
        alike = [pieces[number] for number in numbers]
        table = _Table.of([(master, master, start, pitch) for master, start, _, pitch in alike])
        parts = torch.zeros(table.programs, dtype=torch.int64, device=table.owners.device)
        hashes = [noise.hash64(name.encode()) for _, _, name, _ in alike]
        table.launch(_checksum, hashes, parts, BITS=_BITS[itemsize], BLOCK=4 * _QUADS, num_warps=4)
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
class _Table:
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
        return self.owners.numel()

    @classmethod
    def of(cls, pieces: Sequence[PerturbPiece], tile: tuple[int, int, int] = _LINE) -> "_Table":
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
        with torch.cuda.device_of(given):
            kernel[(self.programs * times,)](self.owners, self.entries, given, *arguments, **options)


_tables: dict[Hashable, _Table] = {}


@dataclass(frozen=True, slots=True)
class Perturbation:
    """Pieces of one type, written to tensors of one type."""

    table: _Table
    types: dict[str, Any]

    @classmethod
    def of(cls, pieces: Sequence[PerturbPiece]) -> "Perturbation":
        """Lay out pieces, as in :func:`prepared`."""
        master, out, *_ = pieces[0]
        return cls(_Table.of(pieces), {"MASTER": _TYPES[master.dtype], "OUT": _TYPES[out.dtype]})

    def start(self, keys: Tensor, scale: float) -> None:
        """Start the kernel. ``keys`` are :func:`as_words` of each piece's."""
        how = self.types | {"QUADS": _QUADS, "ALIGNED": self.table.aligned}
        self.table.launch(_perturb, keys, noise.float32(scale), **how)


def _aligned(master: Tensor, out: Tensor, start: int, pitch: int) -> bool:
    in_fours = start % 4 == 0 and master.shape[-1] % 4 == 0 and (master.ndim == 1 or pitch % 4 == 0)
    return in_fours and all(
        tensor.data_ptr() % (4 * tensor.itemsize) == 0 and (tensor.ndim == 1 or tensor.stride(0) % 4 == 0)
        for tensor in (master, out)
    )


def _rows(tensor: Tensor) -> Tensor:
    """Return a slice as a block of one row."""
    return tensor if tensor.ndim == 2 else tensor.view(1, -1)


@triton.jit
def _centred(word):
    """Return the byte sum of a Philox word less its mean, as float32."""
    if _INTERPRETED:
        sums = (word & 0xFF) + ((word >> 8) & 0xFF) + ((word >> 16) & 0xFF) + (word >> 24) + 0x4B000000
    else:  # one instruction
        sums = tl.inline_asm_elementwise(
            "dp4a.u32.u32 $0, $1, 0x01010101, 0x4B000000;", "=r,r", [word], dtype=tl.uint32, is_pure=True, pack=1
        )
    # The bits 0x4B000000 + n are the float32 2**23 + n: exact, and faster than converting an integer.
    return sums.to(tl.float32, bitcast=True) - _CENTRE


@triton.jit
def _store(place, value, wanted, OUT: tl.constexpr):
    """Write float32 values, rounded to type ``OUT``, halves to even."""
    if _INTERPRETED and tl.bfloat16 == OUT:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(value == value, rounded, (bits >> 16) | 0x40)
        tl.store(place, rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=wanted)
    else:
        tl.store(place, value.to(OUT), mask=wanted)


@triton.jit
def _integers(block, key):
    """Return the unscaled noise of Philox blocks, as four float32 tensors: their first elements, second, and so on."""
    a, b = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    c, d = a * 0, a * 0
    key = key.to(tl.uint64, bitcast=True)
    first, second = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        p, q = a.to(tl.uint64) * _M0, c.to(tl.uint64) * _M1
        a, b = (q >> 32).to(tl.uint32) ^ b ^ first, q.to(tl.uint32)
        c, d = (p >> 32).to(tl.uint32) ^ d ^ second, p.to(tl.uint32)
        first, second = first + _STEP0, second + _STEP1
    return _centred(a), _centred(b), _centred(c), _centred(d)


@triton.jit
def _eps(block, key):
    """Return the scaled noise of Philox blocks, likewise."""
    a, b, c, d = _integers(block, key)
    return a * _SCALE, b * _SCALE, c * _SCALE, d * _SCALE


@triton.jit
def _in_order(a, b, c, d, SIZE: tl.constexpr):
    """Interleave the elements of four tensors."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (SIZE,))


@triton.jit
def _locate(entry, program, QUADS: tl.constexpr, ALIGNED: tl.constexpr):
    """Return a program's row, the column of its first lane, the mask of lanes in use, and their Philox blocks.

    64-bit arithmetic in every lane would take longer than the noise, so it is done once per program where possible.
    """
    first, pitch, columns = tl.load(entry + 2), tl.load(entry + 3), tl.load(entry + 4)
    per_row, program = tl.load(entry + 7).to(tl.int32), program - tl.load(entry + 8).to(tl.int32)
    row, quad = (program // per_row).to(tl.int64), (program % per_row).to(tl.int64) * QUADS
    start = first + row * pitch
    lane, column = tl.arange(0, 4 * QUADS), quad * 4
    if ALIGNED:
        wanted = lane < tl.multiple_of(tl.minimum(columns - column, 4 * QUADS).to(tl.int32), 4)
    else:
        column -= start & 3
        end = tl.minimum(columns - column, 4 * QUADS).to(tl.int32)
        wanted = (lane >= tl.maximum(-column, 0).to(tl.int32)) & (lane < end)
    return row, column, wanted, ((start >> 2) + quad + tl.arange(0, QUADS)).to(tl.uint64)


@triton.jit
def _lanes(entry, which, stride, row, column, TYPE: tl.constexpr, QUADS: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the addresses of a program's elements."""
    first = tl.load(entry + which).to(tl.pointer_type(TYPE)) + (row * tl.load(entry + stride) + column)
    if ALIGNED:  # four at a time
        first = tl.multiple_of(first, 4 * (TYPE.primitive_bitwidth // 8))
    return first + tl.arange(0, 4 * QUADS)


@triton.jit
def _perturb(
    owners, entries, keys, scale, MASTER: tl.constexpr, OUT: tl.constexpr, QUADS: tl.constexpr, ALIGNED: tl.constexpr
):
    piece = tl.load(owners + tl.program_id(0))
    entry = entries + piece * 10
    row, column, wanted, block = _locate(entry, tl.program_id(0), QUADS, ALIGNED)
    weight = tl.load(_lanes(entry, 0, 5, row, column, MASTER, QUADS, ALIGNED), mask=wanted, other=0.0).to(tl.float32)
    a, b, c, d = _eps(block, tl.load(keys + piece))
    out = _lanes(entry, 1, 6, row, column, OUT, QUADS, ALIGNED)
    _store(out, weight + scale * _in_order(a, b, c, d, 4 * QUADS), wanted, OUT)


@triton.jit(do_not_specialize=["members"])
def _update(
    owners, entries, keys, coefficients, members, MASTER: tl.constexpr, QUADS: tl.constexpr, ALIGNED: tl.constexpr
):
    piece = tl.load(owners + tl.program_id(0))
    entry = entries + piece * 10
    row, column, wanted, block = _locate(entry, tl.program_id(0), QUADS, ALIGNED)
    zero = tl.zeros((QUADS,), tl.float32)
    total_a, total_b, total_c, total_d = zero, zero, zero, zero
    for k in range(members):
        coefficient = tl.load(coefficients + k)
        a, b, c, d = _eps(block, tl.load(keys + piece * members + k))
        total_a, total_b = total_a + coefficient * a, total_b + coefficient * b
        total_c, total_d = total_c + coefficient * c, total_d + coefficient * d
    total = _in_order(total_a, total_b, total_c, total_d, 4 * QUADS)
    place = _lanes(entry, 0, 5, row, column, MASTER, QUADS, ALIGNED)
    _store(place, tl.load(place, mask=wanted, other=0.0).to(tl.float32) + total, wanted, MASTER)


@triton.jit(do_not_specialize=["members"])
def _fill(owners, entries, keys, members, QUADS: tl.constexpr, ALIGNED: tl.constexpr):
    """Write the unscaled noise of all members, one after the other."""
    program, member = tl.program_id(0) // members, (tl.program_id(0) % members).to(tl.int64)
    piece = tl.load(owners + program)
    entry = entries + piece * 10
    row, column, wanted, block = _locate(entry, program, QUADS, ALIGNED)
    a, b, c, d = _integers(block, tl.load(keys + piece * members + member))
    out = _lanes(entry, 1, 6, member * tl.load(entry + 9) + row, column, tl.float16, QUADS, ALIGNED)
    tl.store(out, _in_order(a, b, c, d, 4 * QUADS).to(tl.float16), mask=wanted)


@triton.jit
def _product(a, b, row, column, rows, columns, rank, DEPTH: tl.constexpr):
    """Return a tile of ``B A``. Sums of these integers are exact in float32, in any order."""
    if DEPTH == 1:
        left = tl.load(b + row, mask=row < rows, other=0.0).to(tl.float32)
        right = tl.load(a + column, mask=column < columns, other=0.0).to(tl.float32)
        return left[:, None] * right[None, :]
    else:
        product = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
        for first in range(0, rank, DEPTH):
            q = first + tl.arange(0, DEPTH)
            in_b, in_a = (row < rows)[:, None] & (q < rank)[None, :], (q < rank)[:, None] & (column < columns)[None, :]
            high = tl.load(b + (row * rank)[:, None] + q[None, :], mask=in_b, other=0.0)
            wide = tl.load(a + q[:, None] * columns + column[None, :], mask=in_a, other=0.0)
            product = tl.dot(high, wide, product)
        return product


@triton.jit(do_not_specialize=["members", "rank"])
def _update_low_rank(
    owners,
    entries,
    addresses,
    factors,
    members,
    rank,
    MASTER: tl.constexpr,
    SIDE: tl.constexpr,
    DEPTH: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    piece = tl.load(owners + tl.program_id(0))
    entry = entries + piece * 10
    master, columns, stride = tl.load(entry).to(tl.pointer_type(MASTER)), tl.load(entry + 4), tl.load(entry + 5)
    columns, rows = columns.to(tl.int32), tl.load(entry + 9).to(tl.int32)
    if ALIGNED:
        master = tl.multiple_of(master, 4 * (MASTER.primitive_bitwidth // 8))
        columns, stride = tl.multiple_of(columns, 4), tl.multiple_of(stride, 4)
    per_row, program = tl.load(entry + 7).to(tl.int32), tl.program_id(0) - tl.load(entry + 8).to(tl.int32)
    row = program // per_row * SIDE + tl.arange(0, SIDE)
    column = program % per_row * SIDE + tl.arange(0, SIDE)
    a = tl.load(addresses + 2 * piece).to(tl.pointer_type(tl.float16))
    b = tl.load(addresses + 2 * piece + 1).to(tl.pointer_type(tl.float16))
    total = tl.zeros((SIDE, SIDE), tl.float32)
    for k in range(members):
        product = _product(a, b, row, column, rows, columns, rank, DEPTH)
        total = total + tl.load(factors + k) * product
        a += rank * columns
        b += rank * rows
    wanted = (row < rows)[:, None] & (column < columns)[None, :]
    place = master + (row.to(tl.int64) * stride)[:, None] + column[None, :]
    _store(place, tl.load(place, mask=wanted, other=0.0).to(tl.float32) + total, wanted, MASTER)


@triton.jit
def _checksum(owners, entries, hashes, sums, BITS: tl.constexpr, BLOCK: tl.constexpr):
    piece = tl.load(owners + tl.program_id(0))
    entry = entries + piece * 10
    per_row, program = tl.load(entry + 7), tl.program_id(0) - tl.load(entry + 8)
    row, column = program // per_row, (program % per_row) * BLOCK + tl.arange(0, BLOCK)
    wanted = column < tl.load(entry + 4)
    place = tl.load(entry).to(tl.pointer_type(BITS)) + row * tl.load(entry + 5) + column
    word = tl.load(place, mask=wanted, other=0).to(tl.int64) & ((1 << BITS.primitive_bitwidth) - 1)
    index = (tl.load(entry + 2) + row * tl.load(entry + 3) + column).to(tl.uint64)
    z = (tl.load(hashes + piece).to(tl.uint64, bitcast=True) + index * 0x9E3779B97F4A7C15) ^ word.to(tl.uint64)
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = tl.where(wanted, z ^ (z >> 31), 0)
    tl.store(sums + tl.program_id(0), tl.sum(z.to(tl.int64, bitcast=True)))
