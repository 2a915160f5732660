"""Perturbations of low rank: what they are, exactly, and their reference in plain torch.

A member perturbs the weight of every linear layer, a matrix of ``out`` rows and ``in`` columns, by ``scale * eps`` with
``eps = B A / sqrt(r)`` (EGGROLL, arXiv 2511.16652): ``A`` has ``r`` rows of ``in`` and ``B`` has ``out`` rows of ``r``
elements, both of the noise of :mod:`.full_rank`, so that each element of ``eps`` has mean 0 and variance 1 again.
Factors are tensors of noise like any other, under the names that they have in adapter files: ``NAME.lora_A`` and
``NAME.lora_B``.
Embeddings, output embeddings, norms and biases are left as they are.

Noise is an integer from -510 to 510 times :data:`esplug.noise.SCALE`, so ``B A`` is summed up as integers, exactly and
in any order as long as they stay below ``2**24``, which rank 64 does. Rounding begins with the product of that sum and
a coefficient: the update is the exact sum of outer products, and the same on any device.
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
    """Say whether a checkpoint's tensor is the weight of a linear layer, which members of low rank perturb."""
    return len(shape) == 2 and name.endswith(".weight") and not _EMBEDDING.search(name)


def scale(rank: int) -> float:
    """Return what integers are multiplied by to become ``eps``: ``noise.SCALE**2 / sqrt(rank)``, rounded to float32.

    Raises:
        ValueError: the rank is not from 1 to :data:`MAX_RANK`.
    """
    if not 1 <= rank <= MAX_RANK:
        raise ValueError(f"rank {rank} must be from 1 to {MAX_RANK}")
    return noise.float32(noise.SCALE**2 / math.sqrt(rank))


def factor_keys(member_seeds: Sequence[int], name: str) -> list[tuple[int, int]]:
    """Return the Philox keys of a tensor's factors ``A`` and ``B``, for each member.

    Raises:
        ValueError: a seed does not fit in 64 bits.
    """
    keys = (noise.tensor_keys(member_seeds, f"{name}.lora_{factor}") for factor in "AB")
    return list(zip(*keys, strict=True))


def factors(member_seed: int, name: str, shape: Sequence[int], rank: int) -> "tuple[Tensor, Tensor]":
    """Return a tensor's factors ``A``, float32[rank, in], and ``B``, float32[out, rank], as integers."""
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
