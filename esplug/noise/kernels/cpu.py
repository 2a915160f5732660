"""Fused noise kernels for the CPU, bit for bit equal to :mod:`esplug.noise.full_rank`.

A kernel works on a contiguous slice of a tensor that begins at flat index ``start``. Given a matrix, it works on a
block whose first element has flat index ``start`` and whose rows begin ``pitch`` elements apart in the tensor. Kernels
work in tiles that fit the first-level cache, release the GIL and start no threads: callers spread slices over threads.
Arithmetic is IEEE float32, and every product and sum is rounded (no fast-math, no fused multiply-add).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import numba
import numpy as np
import torch
from numba import types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from esplug.noise import full_rank as noise
from esplug.noise import low_rank

Array: TypeAlias = NDArray[Any]
"""Elements of a tensor: one-dimensional, as :func:`flat` returns them, or a block in two dimensions, in C order."""

KeyPairs: TypeAlias = Sequence[tuple[int, int]]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Types that master and perturbed weights may have."""

# numpy has no bfloat16 and numba no float16, so integers of two different types carry their bits.
_CARRIERS = {torch.float32: torch.float32, torch.bfloat16: torch.uint16, torch.float16: torch.int16}

_TILE = 2048
_COLUMNS, _MEMBERS = 1024, 16  # whose low-rank factors are held at a time
_u32, _u64 = np.uint32, np.uint64
_M0, _M1 = _u64(noise.MULTIPLIERS[0]), _u64(noise.MULTIPLIERS[1])
_STEP0, _STEP1 = _u64(noise.KEY_STEPS[0]), _u64(noise.KEY_STEPS[1])
_ROUNDS, _MEAN, _SCALE = noise.ROUNDS, np.int32(noise.MEAN), np.float32(noise.SCALE)
_LOW32, _BYTES, _SUMS = _u64(0xFFFFFFFF), _u64(0x00FF00FF00FF00FF), _u64(0x0000FFFF0000FFFF)
_0, _2, _8, _16, _32 = _u64(0), _u64(2), _u64(8), _u64(16), _u64(32)

F = TypeVar("F", bound=Callable[..., Any])

# LLVM prefers vectors of 256 bits, which suits code with less arithmetic than these kernels. With vectors of 512 bits,
# updates take 0.7 of the time and checksums 0.35 (Xeon with AVX-512). The setting applies to everything that numba
# compiles in this process, unless numba has compiled something before.
if numba.config.CPU_FEATURES is None and "+avx512f" in (_features := get_host_cpu_features()):
    numba.config.CPU_FEATURES = f"{_features},-prefer-256-bit"


def array(tensor: torch.Tensor) -> Array:
    """Return a tensor of one of :data:`FLOATS` as the kernels take it, without copying.

    Raises:
        KeyError: the tensor has another type.
    """
    return tensor.detach().view(_CARRIERS[tensor.dtype]).numpy()


def flat(tensor: torch.Tensor) -> Array:
    """Return a contiguous tensor as a one-dimensional :func:`array`."""
    return array(tensor.view(-1))


def perturb(master: Array, out: Array, start: int, key: int, scale: float, pitch: int = 0) -> None:
    """Write ``round(master + scale * eps)`` to ``out``, rounded to the type of ``out``, halves to even.

    Args:
        master, out: n elements each.
        start: flat index of the first element in its tensor.
        key: from :func:`esplug.noise.full_rank.tensor_key`.
        scale: ``sign * sigma``, rounded to float32 here.
        pitch: distance between the starts of a block's rows in the tensor, in elements.
    """
    _perturb(_rows(master), _rows(out), start, pitch, _u64(key), np.float32(scale))


def convert(master: Array, out: Array) -> None:
    """Write ``master`` to ``out``, rounded to the type of ``out``, halves to even."""
    _convert(_rows(master), _rows(out))


def update(
    master: Array, start: int, keys: "Sequence[int] | Array", coefficients: Sequence[float], pitch: int = 0
) -> None:
    """Add ``sum_k coefficients[k] * eps_k`` to ``master``, which is read and written once.

    The sum is accumulated in float32 in the order given, starting from zero.

    Args:
        master, start, pitch: as in :func:`perturb`.
        keys: each member's key of this tensor, from :func:`esplug.noise.full_rank.tensor_key`.
        coefficients: one per key, rounded to float32 here.
    """
    _update(_rows(master), start, pitch, np.array(keys, dtype=_u64), np.array(coefficients, dtype=np.float32))


def update_low_rank(
    master: Array, row: int, column: int, width: int, keys: KeyPairs | Array, coefficients: Sequence[float], rank: int
) -> None:
    """Add ``sum_k coefficients[k] * eps_k`` of low rank to ``master``, a block of a matrix.

    As in :func:`update`, the sum is accumulated in float32 in the order given, starting from zero. Its terms are
    ``coefficients[k] * scale * (B A)``; the first product is rounded to float32, and then the second.

    Args:
        master: m x n elements.
        row, column: the block's first row and column in the matrix.
        width: columns of the matrix.
        keys: each member's keys, from :func:`esplug.noise.low_rank.factor_keys`.
        coefficients: one per member, rounded to float32 here.
        rank: of each member's noise.
    """
    factors = np.array(coefficients, dtype=np.float32) * np.float32(low_rank.scale(rank))
    _update_low_rank(master, row, column, width, np.array(keys, dtype=_u64).reshape(-1, 2), factors, rank)


def checksum(master: Array, start: int, name: str, pitch: int = 0) -> int:
    """Return the 64-bit checksum of a slice or block of the tensor ``name``; the sum over slices is the tensor's.

    It is ``sum_i mix((h + i * 0x9e3779b97f4a7c15) ^ bits_i) mod 2**64``, where ``i`` is the element's flat
    index in the whole tensor, ``bits_i`` its bit pattern as an unsigned integer (32 or 16 bits), ``h`` the
    little-endian 8-byte BLAKE2b hash of the name, and ``mix`` the one-to-one finalizer of SplitMix64 (Steele,
    Lea and Flood 2014): ``z ^= z >> 30; z *= 0xbf58476d1ce4e5b9; z ^= z >> 27; z *= 0x94d049bb133111eb;
    z ^= z >> 31``. A sum does not depend on order, so shards and threads simply add theirs, modulo 2**64.
    The checksum detects every change of a single element. It misses several changes, such as a swap, once in 2**64.
    """
    bits = master.view(np.uint32 if master.itemsize == 4 else np.uint16)
    return int(_checksum(_rows(bits), _u64(start), _u64(pitch), _u64(noise.hash64(name.encode()))))


def convert_all(pieces: Iterable[tuple[Array, Array]]) -> None:
    """Convert pieces, each the arguments of :func:`convert`."""
    for master, out in pieces:
        convert(master, out)


def perturb_all(pieces: Iterable[tuple[Array, Array, int, int, int]], scale: float) -> None:
    """Perturb pieces, each (master, out, start, key, pitch); see :func:`perturb`."""
    for master, out, start, key, pitch in pieces:
        perturb(master, out, start, key, scale, pitch)


def update_all(pieces: Iterable[tuple[Array, int, Sequence[int], int]], coefficients: Sequence[float]) -> None:
    """Update pieces, each (master, start, keys, pitch); see :func:`update`."""
    for master, start, keys, pitch in pieces:
        update(master, start, keys, coefficients, pitch)


def update_low_rank_all(
    pieces: Iterable[tuple[Array, int, int, int, KeyPairs]], coefficients: Sequence[float], rank: int
) -> None:
    """Update pieces, each (master, row, column, width, keys); see :func:`update_low_rank`."""
    for master, row, column, width, keys in pieces:
        update_low_rank(master, row, column, width, keys, coefficients, rank)


def checksum_all(pieces: Iterable[tuple[Array, int, str, int]]) -> list[int]:
    """Return the checksum of each piece, (master, start, name, pitch); see :func:`checksum`."""
    return [checksum(*piece) for piece in pieces]


def _rows(array: Array) -> Array:
    """Return a slice as a block of one row."""
    return array if array.ndim == 2 else array.reshape(1, -1)


def _jit(function: F) -> F:
    """Compile at the first call; cache the result if numba finds a folder that it can write to."""
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no such folder
        compiled = numba.njit(nogil=True)(function)
    return compiled  # type: ignore[no-any-return]


# --- element types ---------------------------------------------------------------------------------------------
# numba replaces _widen and _narrow by one of the functions below, according to the element type.


def _widen(value: Any) -> Any:
    """Return a master element, in its carrier type, as float32."""


def _narrow(value: Any, out: Any) -> Any:
    """Return a float32 rounded to the element type of ``out``, halves to even; NaN stays NaN."""


def _bitcast(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))


# Reinterpret a float32 as uint32, and the reverse.
_bits_of = intrinsic(lambda typing, value: (types.uint32(types.float32), _bitcast))
_float_of = intrinsic(lambda typing, bits: (types.float32(types.uint32), _bitcast))


def _from_float32(value: Any) -> Any:
    return value


def _to_float32(value: Any, out: Any) -> Any:
    return value


def _from_bfloat16(value: Any) -> Any:
    return _float_of(_u32(value) << _u32(16))


def _from_float16(value: Any) -> Any:
    half = _u32(np.uint16(value))
    sign, size = (half & _u32(0x8000)) << _u32(16), half & _u32(0x7FFF)
    if size < _u32(0x0400):  # subnormal: a multiple of 2**-24
        bits = _bits_of(np.float32(size) * np.float32(2.0**-24))
    elif size < _u32(0x7C00):
        bits = _u32((size << _u32(13)) + _u32(0x38000000))
    else:  # infinite or NaN
        bits = _u32((size << _u32(13)) + _u32(0x70000000))
    return _float_of(bits | sign)


def _to_bfloat16(value: Any, out: Any) -> Any:
    bits = _bits_of(value)
    if (bits & _u32(0x7FFFFFFF)) > _u32(0x7F800000):
        return np.uint16((bits >> _u32(16)) | _u32(0x40))
    return np.uint16((bits + _u32(0x7FFF) + ((bits >> _u32(16)) & _u32(1))) >> _u32(16))


def _to_float16(value: Any, out: Any) -> Any:
    bits = _bits_of(value)
    sign, size = (bits >> _u32(16)) & _u32(0x8000), _u32(bits & _u32(0x7FFFFFFF))
    if size > _u32(0x7F800000):
        half = _u32(0x7E00)
    elif size >= _u32(0x47800000):  # 2**16 and more
        half = _u32(0x7C00)
    elif size < _u32(0x38800000):  # subnormal: its step, 2**-24, is that of float32 next to 0.5
        half = _u32(_bits_of(_float_of(size) + np.float32(0.5)) - _u32(0x3F000000))
    else:
        half = _u32((size - _u32(0x38000000) + _u32(0x0FFF) + ((size >> _u32(13)) & _u32(1))) >> _u32(13))
    return np.int16(np.uint16(half | sign))


def _choose_widen(value: Any) -> Any:
    return {types.float32: _from_float32, types.uint16: _from_bfloat16, types.int16: _from_float16}[value]


def _choose_narrow(value: Any, out: Any) -> Any:
    return {types.float32: _to_float32, types.uint16: _to_bfloat16, types.int16: _to_float16}[out.dtype]


overload(_widen)(_choose_widen)
overload(_narrow)(_choose_narrow)


# --- kernels ---------------------------------------------------------------------------------------------------


@_jit
def _byte_sums(sums: Array, first: Any, count: int, key: Any) -> None:
    """Fill ``sums`` (uint64) with ``count`` Philox blocks from ``first``, each word reduced to its byte sum.

    A block is one uint64 of four 16-bit sums; viewed as uint16, the array holds them in element order. Words are in
    the low halves of uint64, and the high halves are undefined, so that LLVM can use vector products of
    32 x 32 -> 64 bits.
    """
    for j in range(count):
        block = first + _u64(j)
        x0, x1, x2, x3 = block & _LOW32, block >> _32, _0, _0
        k0, k1 = key & _LOW32, key >> _32
        for _ in range(_ROUNDS):
            p, q = _M0 * (x0 & _LOW32), _M1 * (x2 & _LOW32)
            x0, x1, x2, x3 = (q >> _32) ^ x1 ^ k0, q, (p >> _32) ^ x3 ^ k1, p
            k0, k1 = (k0 + _STEP0) & _LOW32, (k1 + _STEP1) & _LOW32
        even, odd = (x0 & _LOW32) | (x2 << _32), (x1 & _LOW32) | (x3 << _32)
        even, odd = (even & _BYTES) + ((even >> _8) & _BYTES), (odd & _BYTES) + ((odd >> _8) & _BYTES)
        even, odd = (even + (even >> _16)) & _SUMS, (odd + (odd >> _16)) & _SUMS
        sums[j] = even | (odd << _16)


@_jit
def _perturb(master: Array, out: Array, start: int, pitch: int, key: Any, scale: Any) -> None:
    sums = np.empty(_TILE // 4 + 1, _u64)
    words = sums.view(np.uint16)
    rows, columns = master.shape
    for row in range(rows):
        for low in range(0, columns, _TILE):
            first, count = start + row * pitch + low, min(_TILE, columns - low)
            skip = first & 3
            _byte_sums(sums, _u64(first) >> _2, (skip + count + 3) >> 2, key)
            word = words[skip : skip + count]
            source, target = master[row, low : low + count], out[row, low : low + count]
            for j in range(count):
                eps = np.float32(np.int32(word[j]) - _MEAN) * _SCALE
                target[j] = _narrow(_widen(source[j]) + scale * eps, target)


@_jit
def _convert(master: Array, out: Array) -> None:
    rows, columns = master.shape
    for row in range(rows):
        source, target = master[row], out[row]
        for j in range(columns):
            target[j] = _narrow(_widen(source[j]), target)


@_jit
def _update(master: Array, start: int, pitch: int, keys: Array, coefficients: Array) -> None:
    sums = np.empty(_TILE // 4 + 1, _u64)
    words = sums.view(np.uint16)
    total = np.empty(_TILE, np.float32)
    rows, columns = master.shape
    for row in range(rows):
        for low in range(0, columns, _TILE):
            first, count = start + row * pitch + low, min(_TILE, columns - low)
            skip = first & 3
            word, target = words[skip : skip + count], master[row, low : low + count]
            total[:] = 0
            for k in range(keys.size):
                _byte_sums(sums, _u64(first) >> _2, (skip + count + 3) >> 2, keys[k])
                coefficient = coefficients[k]
                for j in range(count):
                    total[j] += coefficient * (np.float32(np.int32(word[j]) - _MEAN) * _SCALE)
            for j in range(count):
                target[j] = _narrow(_widen(target[j]) + total[j], target)


@_jit
def _integers(out: Array, start: int, key: Any, sums: Array) -> None:
    """Fill ``out`` (float32) with unscaled noise, beginning at flat index ``start``."""
    words = sums.view(np.uint16)
    for low in range(0, out.size, _TILE):
        first, count = start + low, min(_TILE, out.size - low)
        skip = first & 3
        _byte_sums(sums, _u64(first) >> _2, (skip + count + 3) >> 2, key)
        for j in range(count):
            out[low + j] = np.float32(np.int32(words[skip + j]) - _MEAN)


@_jit
def _update_low_rank(master: Array, row: int, column: int, width: int, keys: Array, factors: Array, rank: int) -> None:
    sums = np.empty(_TILE // 4 + 1, _u64)
    rows, columns = master.shape
    total = np.zeros((rows, columns), np.float32)
    a = np.empty((_MEMBERS, rank, _COLUMNS), np.float32)
    b = np.empty((_MEMBERS, rows * rank), np.float32)
    product = np.empty(_COLUMNS, np.float32)
    for first in range(0, factors.size, _MEMBERS):
        members = min(_MEMBERS, factors.size - first)
        for k in range(members):
            _integers(b[k], row * rank, keys[first + k, 1], sums)
        for low in range(0, columns, _COLUMNS):
            count = min(_COLUMNS, columns - low)
            for k in range(members):
                for q in range(rank):
                    _integers(a[k, q, :count], q * width + column + low, keys[first + k, 0], sums)
            for i in range(rows):
                line = total[i, low : low + count]
                for k in range(members):
                    factor, value = factors[first + k], b[k, i * rank]
                    if rank == 1:
                        for j in range(count):
                            line[j] += factor * (value * a[k, 0, j])
                        continue
                    for j in range(count):
                        product[j] = value * a[k, 0, j]
                    for q in range(1, rank):
                        value = b[k, i * rank + q]
                        for j in range(count):
                            product[j] += value * a[k, q, j]
                    for j in range(count):
                        line[j] += factor * product[j]
    for i in range(rows):
        target, line = master[i], total[i]
        for j in range(columns):
            target[j] = _narrow(_widen(target[j]) + line[j], target)


@_jit
def _checksum(bits: Array, start: Any, pitch: Any, name_hash: Any) -> Any:
    total = _0
    rows, columns = bits.shape
    for row in range(rows):
        first, line = start + _u64(row) * pitch, bits[row]
        for j in range(columns):
            z = (name_hash + (first + _u64(j)) * _u64(0x9E3779B97F4A7C15)) ^ _u64(line[j])
            z = (z ^ (z >> _u64(30))) * _u64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> _u64(27))) * _u64(0x94D049BB133111EB)
            total += z ^ (z >> _u64(31))
    return total
