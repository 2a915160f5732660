"""The processes of one engine, each with its part of the weights."""

from collections.abc import Sequence
from typing import Any

import torch


class RankGroup:
    """Adds up over an engine's tensor-parallel processes, all of which call the same methods in the same order.

    Args:
        group: of ``torch.distributed``, on the CPU; ``None`` for a process that is alone.
        rank: of this process in it.
    """

    def __init__(self, group: Any = None, rank: int = 0) -> None:
        self._group, self.rank = group, rank

    def sums(self, values: Sequence[int]) -> list[int]:
        """Return the sums of each value, modulo 2**64."""
        if self._group is None or not values:
            return [value % 2**64 for value in values]
        signed = [(value + 2**63) % 2**64 - 2**63 for value in values]
        total = torch.tensor(signed, dtype=torch.int64)
        torch.distributed.all_reduce(total, group=self._group)
        return [value % 2**64 for value in total.tolist()]

    def join(self, tensor: torch.Tensor) -> None:
        """Add the bytes of a contiguous tensor, of which each process has filled a part and left the rest zero."""
        if self._group is not None and tensor.numel():
            torch.distributed.all_reduce(tensor.view(-1).view(torch.uint8), group=self._group)
