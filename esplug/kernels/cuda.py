"""Fused noise kernels for GPUs, in Triton: those of :mod:`esplug.kernels.cpu`, bit for bit, for tensors on a GPU.

Every element is read and written once. Products and sums are rounded apart, so Triton must not fuse them. With
``TRITON_INTERPRET=1`` set when this module is imported, the kernels run on the CPU, which is how they are tested.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
import triton
import triton.language as tl

from esplug import noise

_QUADS = 256  # groups of four elements that one program makes
_MEAN = tl.constexpr(noise.MEAN)
_SCALE = tl.constexpr(noise.SCALE)
_ROUNDS = tl.constexpr(noise.ROUNDS)
# The interpreter rounds to bfloat16 in another way than GPUs do.
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
_BITS = {4: torch.int32, 2: torch.int16}


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of a contiguous tensor as the kernels take it; they also take a matrix, as those for CPUs do."""
    return tensor.detach().view(-1)


def perturb(master: torch.Tensor, out: torch.Tensor, start: int, key: int, scale: float, pitch: int = 0) -> None:
    """Write ``round(master + scale * eps)`` to ``out``; see :func:`esplug.kernels.cpu.perturb`."""
    master, out = _rows(master), _rows(out)
    programs, per_row = _programs(master)
    with torch.cuda.device_of(master):
        _perturb[(programs,)](
            *(master, out, start, pitch, _signed(key), noise.float32(scale)),
            *(master.shape[1], master.stride(0), out.stride(0), per_row),
            QUADS=_QUADS,
            enable_fp_fusion=False,
        )


def convert(master: torch.Tensor, out: torch.Tensor) -> None:
    """Write ``master`` to ``out``, rounded to the type of ``out``, halves to even."""
    out.copy_(master)


def update(
    master: torch.Tensor, start: int, keys: Sequence[int], coefficients: Sequence[float], pitch: int = 0
) -> None:
    """Add ``sum_k coefficients[k] * eps_k`` to ``master``; see :func:`esplug.kernels.cpu.update`."""
    master = _rows(master)
    programs, per_row = _programs(master)
    with torch.cuda.device_of(master):
        _update[(programs,)](
            master,
            torch.tensor([_signed(key) for key in keys], dtype=torch.int64, device=master.device),
            torch.tensor(coefficients, dtype=torch.float32, device=master.device),
            *(len(keys), start, pitch, master.shape[1], master.stride(0), per_row),
            QUADS=_QUADS,
            enable_fp_fusion=False,
        )


def checksum(master: torch.Tensor, start: int, name: str, pitch: int = 0) -> int:
    """Return the 64-bit checksum of a stretch or block of the tensor ``name``; see the one for CPUs."""
    name_hash = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    master = _rows(master)
    programs, per_row = _programs(master)
    sums = torch.zeros(programs, dtype=torch.int64, device=master.device)
    with torch.cuda.device_of(master):
        _checksum[(programs,)](
            *(master.view(_BITS[master.itemsize]), sums, start, pitch, _signed(name_hash)),
            *(master.shape[1], master.stride(0), per_row),
            WIDTH=8 * master.itemsize,
            BLOCK=4 * _QUADS,
        )
    return int(sums.sum().item()) % 2**64


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return a stretch as a block of one row."""
    return tensor if tensor.ndim == 2 else tensor.view(1, -1)


def _programs(block: torch.Tensor) -> tuple[int, int]:
    """Return how many programs a block takes, and how many each of its rows, which may begin inside a Philox block."""
    rows, columns = block.shape
    per_row = triton.cdiv(columns + 3, 4 * _QUADS)
    return rows * per_row, per_row


def _signed(word: int) -> int:
    """Return the 64-bit integer with a sign that has the same bits."""
    return word - 2**64 if word >= 2**63 else word


@triton.jit
def _byte_sum(word):
    return (word & 0xFF) + ((word >> 8) & 0xFF) + ((word >> 16) & 0xFF) + (word >> 24)


@triton.jit
def _unsigned(word):
    """Return a 64-bit integer, which is passed as a 32-bit one where that will do, without its sign."""
    return word.to(tl.int64).to(tl.uint64, bitcast=True)


@triton.jit
def _store(place, value, wanted):
    """Write float32 values rounded to the type of their place, halves to even."""
    if _INTERPRETED and place.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(value == value, rounded, (bits >> 16) | 0x40)
        tl.store(place, rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=wanted)
    else:
        tl.store(place, value.to(place.dtype.element_ty), mask=wanted)


@triton.jit
def _eps(block, key, QUADS: tl.constexpr):
    """Return the noise of ``QUADS`` Philox blocks in element order, as float32[4 * QUADS]."""
    low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    zero = low * 0
    a, b, c, d = tl.philox(key, low, high, zero, zero, _ROUNDS)
    sums = tl.join(tl.join(_byte_sum(a), _byte_sum(c)), tl.join(_byte_sum(b), _byte_sum(d)))
    return (tl.reshape(sums, (4 * QUADS,)).to(tl.int32) - _MEAN).to(tl.float32) * _SCALE


@triton.jit
def _place(first, pitch, per_row, QUADS: tl.constexpr):
    """Return this program's row, its elements' columns, of which those before 0 are not wanted, and Philox blocks."""
    row = (tl.program_id(0) // per_row).to(tl.int64)
    quad = (tl.program_id(0) % per_row).to(tl.int64) * QUADS
    start = first + row * pitch
    columns = quad * 4 + tl.arange(0, 4 * QUADS) - (start & 3)
    return row, columns, ((start >> 2) + quad + tl.arange(0, QUADS)).to(tl.uint64)


@triton.jit(do_not_specialize=["first", "pitch", "key", "scale", "columns", "per_row"])
def _perturb(master, out, first, pitch, key, scale, columns, master_stride, out_stride, per_row, QUADS: tl.constexpr):
    row, column, block = _place(first, pitch, per_row, QUADS)
    wanted = (column >= 0) & (column < columns)
    weight = tl.load(master + row * master_stride + column, mask=wanted, other=0.0).to(tl.float32)
    noisy = weight + scale * _eps(block, _unsigned(key), QUADS)
    _store(out + row * out_stride + column, noisy, wanted)


@triton.jit(do_not_specialize=["members", "first", "pitch", "columns", "per_row"])
def _update(master, keys, coefficients, members, first, pitch, columns, stride, per_row, QUADS: tl.constexpr):
    row, column, block = _place(first, pitch, per_row, QUADS)
    wanted = (column >= 0) & (column < columns)
    total = tl.zeros((4 * QUADS,), tl.float32)
    for k in range(members):
        total += tl.load(coefficients + k) * _eps(block, _unsigned(tl.load(keys + k)), QUADS)
    place = master + row * stride + column
    weight = tl.load(place, mask=wanted, other=0.0).to(tl.float32)
    _store(place, weight + total, wanted)


@triton.jit(do_not_specialize=["first", "pitch", "name_hash", "columns", "per_row"])
def _checksum(bits, sums, first, pitch, name_hash, columns, stride, per_row, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = (tl.program_id(0) // per_row).to(tl.int64)
    column = (tl.program_id(0) % per_row).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    wanted = column < columns
    word = tl.load(bits + row * stride + column, mask=wanted, other=0).to(tl.int64) & ((1 << WIDTH) - 1)
    index = (first + row * pitch + column).to(tl.uint64)
    z = (_unsigned(name_hash) + index * 0x9E3779B97F4A7C15) ^ word.to(tl.uint64)
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = tl.where(wanted, z ^ (z >> 31), 0)
    tl.store(sums + tl.program_id(0), tl.sum(z.to(tl.int64, bitcast=True)))
