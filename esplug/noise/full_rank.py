"""Full-rank noise: the exact definition of ``eps(seed, tensor name, index)``, and its reference in plain torch.

Every engine must make the same noise from a seed, bit for bit, on any device and under any tensor-parallel split. So
noise is integer arithmetic on a counter: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3"), then the sum of a word's four bytes, centred and scaled. That sum is an Irwin-Hall approximation of the normal
distribution: mean 0, variance 1, excess kurtosis -0.3, range +-3.45. :mod:`esplug.noise.kernels` has faster versions.
"""

import math
import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

MEAN = 510
"""Mean of the sum of four uniform bytes."""


def float32(value: float) -> float:
    """Round to the nearest float32 value."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


SCALE = float32(1 / math.sqrt(4 * (256**2 - 1) / 12))
"""One over the standard deviation of that sum, a float32 value."""

_MASK32 = 0xFFFFFFFF


def member_seed(run_seed: int, iteration: int, index: int) -> int:
    """Return the 64-bit seed of perturbation ``index`` in an ``iteration``. Runs with different seeds share none.

    Raises:
        ValueError: an argument is negative or does not fit in 64 bits.
    """
    for what, value in (("run seed", run_seed), ("iteration", iteration), ("index", index)):
        _check_u64(what, value)
    return hash64(struct.pack("<QQQ", run_seed, iteration, index))


def tensor_key(member_seed: int, name: str) -> int:
    """Return the 64-bit Philox key of one tensor: low word first, as ``(key & 0xffffffff, key >> 32)``.

    Args:
        member_seed: from :func:`member_seed`.
        name: the tensor's name in the checkpoint. Tensors of the same shape have different noise.

    Raises:
        ValueError: the seed is negative or does not fit in 64 bits.
    """
    _check_u64("member seed", member_seed)
    return hash64(struct.pack("<Q", member_seed) + name.encode())


def tensor_keys(member_seeds: Sequence[int], name: str) -> list[int]:
    """Return the :func:`tensor_key` of each member, three times as fast as single calls.

    Raises:
        ValueError: a seed is negative or does not fit in 64 bits.
    """
    for seed in member_seeds:
        _check_u64("member seed", seed)
    pack, encoded, read = struct.Struct("<Q").pack, name.encode(), int.from_bytes
    return [read(blake2b(pack(seed) + encoded, digest_size=8).digest(), "little") for seed in member_seeds]


def eps(member_seed: int, name: str, start: int, count: int) -> "Tensor":
    """Return elements ``start .. start + count`` of a tensor's noise, as float32[count] on the CPU.

    Element ``i`` (flat and row-major in the checkpoint's own shape) comes from word ``i % 4`` of the Philox block
    with counter ``(b & 0xffffffff, b >> 32, 0, 0)``, where ``b = i // 4``.

    Raises:
        ValueError: the seed does not fit in 64 bits, or ``start`` or ``count`` is negative.
    """
    return integers(member_seed, name, start, count).float() * SCALE


def integers(member_seed: int, name: str, start: int, count: int) -> "Tensor":
    """Return :func:`eps` before scaling: centred byte sums from -510 to 510, as int64[count]."""
    import torch

    if start < 0 or count < 0:
        raise ValueError(f"start and count must not be negative, got {start} and {count}")
    key = tensor_key(member_seed, name)
    first, end = start // 4, (start + count + 3) // 4
    block = torch.arange(first, end, dtype=torch.int64, device="cpu")
    zero = torch.zeros_like(block)
    counter = torch.stack([block & _MASK32, block >> 32, zero, zero], dim=1)
    words = philox((key & _MASK32, key >> 32), counter).flatten()
    words = words[start - 4 * first :][:count]
    sums = (words & 0xFF) + (words >> 8 & 0xFF) + (words >> 16 & 0xFF) + (words >> 24)
    return sums - MEAN


def philox(key: tuple[int, int], counter: "Tensor") -> "Tensor":
    """Return Philox4x32-10 of each counter under one key.

    Args:
        key: two 32-bit words.
        counter: int64[n, 4] of 32-bit words, like the result.
    """
    import torch

    x0, x1, x2, x3 = counter.unbind(1)
    for turn in range(ROUNDS):
        k0, k1 = ((word + turn * step) & _MASK32 for word, step in zip(key, KEY_STEPS, strict=True))
        # Products wrap modulo 2**64, and the masks make the signed right shifts unsigned.
        p, q = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        x0, x1 = ((q >> 32) & _MASK32) ^ x1 ^ k0, q & _MASK32
        x2, x3 = ((p >> 32) & _MASK32) ^ x3 ^ k1, p & _MASK32
    return torch.stack([x0, x1, x2, x3], dim=1)


def hash64(data: bytes) -> int:
    """Return the 8-byte BLAKE2b hash, little-endian."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def _check_u64(what: str, value: int) -> None:
    if not 0 <= value < 2**64:
        raise ValueError(f"{what} must be between 0 and 2**64 - 1, got {value}")
