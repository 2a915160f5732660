"""Triton kernel of a greedy step on a GPU: one launch chooses each row's token and advances the row."""

from typing import Any

import torch
import triton
import triton.language as tl

_BLOCK = 8192


def advance_greedily(logits: torch.Tensor, *state: Any) -> None:
    """Do what :meth:`esplug.rollout.rows.Rows.advance` does with a greedy sampler, bit for bit.

    Args:
        logits: [rows, vocabulary]; the last dimension must have stride 1.
        state: the tensors of ``Rows`` in the order of the kernel's arguments, and the size of a page.
    """
    *tensors, table, recent, ends, undefined, page_size = state
    size, vocabulary = logits.shape
    _advance[(size,)](
        *(logits, logits.stride(0), vocabulary, *tensors, table, table.stride(0), recent, ends, undefined),
        **{"PAGE": page_size, "KEPT": recent.shape[1], "BLOCK": min(_BLOCK, triton.next_power_of_2(vocabulary))},
        num_warps=8,
    )


@triton.jit
def _advance(
    logits, pitch, vocabulary, tokens, positions, lasts, lengths, places, actives, adapters, table, table_pitch, recent,
    ends, undefined, PAGE: tl.constexpr, KEPT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if tl.load(actives + row) != 0:
        lane = tl.arange(0, BLOCK)
        best = tl.full((BLOCK,), float("-inf"), tl.float32)
        where, broken = lane, tl.zeros((BLOCK,), tl.int32)
        for start in range(0, vocabulary, BLOCK):
            column = start + lane
            each = tl.load(logits + row * pitch + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
            isnan = each != each
            where = tl.where(
                (broken == 0) & ((each > best) | isnan), column, where
            )  # as torch does, keep the first NaN
            best = tl.where(each > best, each, best)
            broken |= isnan.to(tl.int32)
        top = tl.max(best, 0)
        if tl.max(broken, 0) > 0:
            token = tl.min(tl.where(broken > 0, where, vocabulary), 0)
        else:
            token = tl.min(tl.where(best == top, where, vocabulary), 0)
        if (tl.max(broken, 0) > 0) | (tl.abs(top) == float("inf")):
            tl.atomic_add(undefined + tl.load(adapters + row), 1)
        position = tl.load(positions + row)
        tl.store(recent + row * KEPT + position % KEPT, token)
        if (tl.load(ends + token) != 0) | (position >= tl.load(lasts + row)):
            tl.store(actives + row, 0)
        else:
            position += 1
            tl.store(tokens + row, token)
            tl.store(positions + row, position)
            tl.store(lengths + row, position + 1)
            page = tl.load(table + row * table_pitch + position // PAGE).to(tl.int64)
            tl.store(places + row, page * PAGE + position % PAGE)
