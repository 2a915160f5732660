"""Rank group: the tensor-parallel processes of one engine, each with its part of the weights."""

from collections.abc import Sequence
from typing import Any

import torch


class RankGroup:
    """Sums values over an engine's processes. All of them call the same methods in the same order.

    ``group`` is a ``torch.distributed`` group on the CPU, or ``None`` for a single process.
    """

    def __init__(self, group: Any = None, rank: int = 0) -> None:
        self._group, self.rank = group, rank

    def sums(self, values: Sequence[int]) -> list[int]:
        """Return the sum of each value over the processes, modulo 2**64."""
        if self._group is None or not values:
            return [value % 2**64 for value in values]
        signed = [(value + 2**63) % 2**64 - 2**63 for value in values]
        total = torch.tensor(signed, dtype=torch.int64)
        torch.distributed.all_reduce(total, group=self._group)
        return [value % 2**64 for value in total.tolist()]

    def join(self, tensor: torch.Tensor) -> None:
        """Fill a contiguous tensor in place: each process has filled its part and left the rest zero."""
        if self._group is not None and tensor.numel():
            torch.distributed.all_reduce(tensor.view(-1).view(torch.uint8), group=self._group)
