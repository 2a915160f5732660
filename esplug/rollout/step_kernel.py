"""Triton kernels of a greedy step on a GPU: two launches choose each row's token and advance the row."""

from typing import Any

import torch
import triton
import triton.language as tl

_BLOCK = 4096  # logits at a time
_PARTS = 8  # of a row's logits, searched at once, because there are fewer rows than the GPU has room for


def advance_greedily(logits: torch.Tensor, *state: Any) -> None:
    """Do what :meth:`esplug.rollout.rows.Rows.advance` does with a greedy sampler, bit for bit.

    Args:
        logits: [rows, vocabulary]; the last dimension must have stride 1.
        state: the tensors of ``Rows`` in the order of the kernel's arguments, and the size of a page.
    """
    *tensors, table, recent, ends, undefined, page_size = state
    size, vocabulary = logits.shape
    if not size:
        return
    part = triton.cdiv(triton.cdiv(vocabulary, _PARTS), _BLOCK) * _BLOCK
    best = torch.empty((size, _PARTS), dtype=torch.float32, device=logits.device)
    where = torch.empty((size, _PARTS), dtype=torch.int32, device=logits.device)
    _search[(size, _PARTS)](logits, logits.stride(0), vocabulary, best, where, PARTS=_PARTS, PART=part, BLOCK=_BLOCK)
    _advance[(size,)](
        *(best, where, *tensors, table, table.stride(0), recent, ends, undefined),
        **{"PARTS": _PARTS, "PAGE": page_size, "KEPT": recent.shape[1]},
        num_warps=1,
    )


@triton.jit
def _search(logits, pitch, vocabulary, best, where, PARTS: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr):
    """Find the first largest logit of a part of a row, or the first NaN."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    first, broken = part * PART + lane, tl.zeros((BLOCK,), tl.int32)
    for start in range(0, PART, BLOCK):
        column = part * PART + start + lane
        each = tl.load(logits + row * pitch + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
        undefined = each != each
        first = tl.where((broken == 0) & ((each > top) | undefined), column, first)
        top = tl.where(each > top, each, top)
        broken |= undefined.to(tl.int32)
    largest, any_broken = tl.max(top, 0), tl.max(broken, 0) > 0
    found = tl.where(any_broken, broken > 0, top == largest)
    tl.store(best + row * PARTS + part, tl.where(any_broken, float("nan"), largest))
    tl.store(where + row * PARTS + part, tl.min(tl.where(found, first, vocabulary), 0))


@triton.jit
def _advance(
    best, where, tokens, positions, lasts, lengths, places, actives, adapters, table, table_pitch, recent, ends,
    undefined, PARTS: tl.constexpr, PAGE: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Take a row's next token, and go on to it unless the answer ends."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(actives + row) != 0:
        lane = row * PARTS + tl.arange(0, PARTS)
        tops, firsts = tl.load(best + lane), tl.load(where + lane)
        broken = tops != tops
        top = tl.max(tl.where(broken, float("-inf"), tops), 0)
        any_broken = tl.max(broken.to(tl.int32), 0) > 0
        token = tl.min(tl.where(broken | ((tops == top) & (any_broken == 0)), firsts, 2147483647), 0)
        if any_broken | (tl.abs(top) == float("inf")):
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
