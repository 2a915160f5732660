"""Low-rank noise: its exact definition, and its reference in plain torch.

A member perturbs the weight of every linear layer, a matrix of ``out`` rows and ``in`` columns, by ``scale * eps`` with
``eps = B A / sqrt(r)`` (EGGROLL, arXiv 2511.16652): ``A`` has ``r`` rows of ``in`` and ``B`` has ``out`` rows of ``r``
elements. Both consist of noise from :mod:`.full_rank`, so each element of ``eps`` has mean 0 and variance 1, too. The
noise of a factor is that of a tensor with the factor's name in adapter files: ``NAME.lora_A`` or ``NAME.lora_B``.
Embeddings, output embeddings, norms and biases are not perturbed.

Noise is an integer from -510 to 510 times :data:`esplug.noise.SCALE`, so ``B A`` is summed as integers. The sum is
exact in float32 and in any order as long as it stays below ``2**24``, as it does up to rank 64. The first rounding is
that of the product of this sum and a coefficient, so the update is the same on any device.
"""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from esplug.noise import full_rank as noise

if TYPE_CHECKING:
    from torch import Tensor

MAX_RANK = 64
"""Largest rank whose sums are exact in float32: ``64 * 510**2 < 2**24``."""

_EMBEDDING = re.compile(r"embed|lm_head|(^|\.)w[tp]e\.")


def is_perturbed(name: str, shape: Sequence[int]) -> bool:
    """Return whether a checkpoint tensor is the weight of a linear layer, which low-rank noise perturbs."""
    return len(shape) == 2 and name.endswith(".weight") and not _EMBEDDING.search(name)


def scale(rank: int) -> float:
    """Return the factor from integer products to ``eps``: ``noise.SCALE**2 / sqrt(rank)``, rounded to float32.

    Raises:
        ValueError: the rank is not from 1 to :data:`MAX_RANK`.
    """
    if not 1 <= rank <= MAX_RANK:
        raise ValueError(f"rank {rank} must be from 1 to {MAX_RANK}")
    return noise.float32(noise.SCALE**2 / math.sqrt(rank))


def factor_keys(member_seeds: Sequence[int], name: str) -> list[tuple[int, int]]:
    """Return each member's Philox keys of a tensor's factors ``A`` and ``B``.

    Raises:
        ValueError: a seed does not fit in 64 bits.
    """
    keys = (noise.tensor_keys(member_seeds, f"{name}.lora_{factor}") for factor in "AB")
    return list(zip(*keys, strict=True))


def factors(member_seed: int, name: str, shape: Sequence[int], rank: int) -> "tuple[Tensor, Tensor]":
    """Return a tensor's unscaled factors ``A``, float32[rank, in], and ``B``, float32[out, rank]."""
    rows, columns = shape
    a = noise.integers(member_seed, f"{name}.lora_A", 0, rank * columns)
    b = noise.integers(member_seed, f"{name}.lora_B", 0, rows * rank)
    return a.float().view(rank, columns), b.float().view(rows, rank)


def eps(member_seed: int, name: str, shape: Sequence[int], rank: int) -> "Tensor":
    """Return the low-rank noise of a whole tensor, as float32[out, in] on the CPU.

    Raises:
        ValueError: the seed does not fit in 64 bits, or the rank is out of range.
    """
    a, b = factors(member_seed, name, shape, rank)
    return (b.double() @ a.double()).float() * scale(rank)
