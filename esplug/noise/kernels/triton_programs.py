"""Triton programs of the GPU kernels. A table tells each which rows and columns are its own.

An entry of the table is described at :class:`esplug.noise.kernels.program_table.ProgramTable`. Every product and sum is
rounded, so Triton must not fuse them.
"""

import triton
import triton.language as tl

from esplug.noise import full_rank as noise

_CENTRE = tl.constexpr(float(2**23 + noise.MEAN))
_SCALE = tl.constexpr(noise.SCALE)
_ROUNDS = tl.constexpr(noise.ROUNDS)
_M0, _M1 = tl.constexpr(noise.MULTIPLIERS[0]), tl.constexpr(noise.MULTIPLIERS[1])
_STEP0, _STEP1 = tl.constexpr(noise.KEY_STEPS[0]), tl.constexpr(noise.KEY_STEPS[1])
# The interpreter rounds to bfloat16 differently from GPUs.
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


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
def perturb(
    owners, entries, keys, scale, MASTER: tl.constexpr, OUT: tl.constexpr, QUADS: tl.constexpr, ALIGNED: tl.constexpr
):
    """Write weights plus scaled noise, rounded to type ``OUT``."""
    piece = tl.load(owners + tl.program_id(0))
    entry = entries + piece * 10
    row, column, wanted, block = _locate(entry, tl.program_id(0), QUADS, ALIGNED)
    weight = tl.load(_lanes(entry, 0, 5, row, column, MASTER, QUADS, ALIGNED), mask=wanted, other=0.0).to(tl.float32)
    a, b, c, d = _eps(block, tl.load(keys + piece))
    out = _lanes(entry, 1, 6, row, column, OUT, QUADS, ALIGNED)
    _store(out, weight + scale * _in_order(a, b, c, d, 4 * QUADS), wanted, OUT)


@triton.jit(do_not_specialize=["members"])
def update(
    owners, entries, keys, coefficients, members, MASTER: tl.constexpr, QUADS: tl.constexpr, ALIGNED: tl.constexpr
):
    """Add the members' noise, each with its coefficient, to the weights."""
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
def fill(owners, entries, keys, members, QUADS: tl.constexpr, ALIGNED: tl.constexpr):
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
def update_low_rank(
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
    """Add the products of the members' factors, which :func:`fill` has written, to the weights."""
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
def checksum(owners, entries, hashes, sums, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Write each program's share of its piece's checksum."""
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
