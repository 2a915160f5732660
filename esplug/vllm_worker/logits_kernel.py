"""Triton kernel that counts undefined logits on a GPU, with one launch where torch needs ten."""

import torch
import triton
import triton.language as tl

_BLOCK = 8192


def count_undefined(logits: torch.Tensor, slots: torch.Tensor | None, counts: torch.Tensor) -> None:
    """Add to ``counts[1 + slot]`` the number of rows of ``logits`` with NaN or without a finite maximum.

    Args:
        logits: [rows, vocabulary]; the last dimension must have stride 1.
        slots: [rows], int64, the adapter slot of each row, -1 for none; ``None`` if no row has an adapter.
        counts: [1 + slots], int64, updated in place.
    """
    rows, vocabulary = logits.shape
    if rows:
        _count[(rows,)](
            *(logits, logits.stride(0), vocabulary, counts if slots is None else slots, counts),
            **{"SLOTS": slots is not None, "BLOCK": min(_BLOCK, triton.next_power_of_2(vocabulary))},
        )


@triton.jit
def _count(logits, pitch, vocabulary, slots, counts, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    top, broken = tl.full((BLOCK,), float("-inf"), tl.float32), tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        each = tl.load(logits + row * pitch + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
        broken |= (each != each).to(tl.int32)
        top = tl.where(each > top, each, top)
    if (tl.max(broken, 0) > 0) | (tl.abs(tl.max(top, 0)) == float("inf")):
        where = counts
        if SLOTS:
            where += 1 + tl.load(slots + row)
        tl.atomic_add(where, 1)
