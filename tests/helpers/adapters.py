"""Exact sums of adapters, to compare kernels with."""

import torch


def exact_sums(
    y: torch.Tensor, x: torch.Tensor, slots: torch.Tensor, a: list[torch.Tensor], b: list[torch.Tensor]
) -> torch.Tensor:
    """Return ``y`` plus each row's adapter output, in float64. Rows with a negative slot have no adapter."""
    total, first = y.double(), 0
    for down, up in zip(a, b, strict=True):
        for row, slot in enumerate(slots[: len(x)].tolist()):
            if slot >= 0:
                share = up[slot, 0].double() @ (down[slot, 0].double() @ x[row].double())
                total[row, first : first + up.shape[2]] += share
        first += up.shape[2]
    return total
