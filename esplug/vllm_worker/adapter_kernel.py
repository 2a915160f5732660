"""Triton kernel for adapters on a GPU: adds each row's own low-rank product in place.

A row's sums are computed in the same order whatever else is in the batch. One kernel launch covers a whole layer. The
factors are thin, so most of the time goes into the outputs.
"""

import torch
import triton
import triton.language as tl

_INPUTS, _OUTPUTS = 4096, 2048  # elements of each factor that a program holds at a time
_PROGRAMS = 1024  # enough to keep a GPU busy
_MOST_SLICES = 3


def add(y: torch.Tensor, x: torch.Tensor, slots: torch.Tensor, a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    """Add ``b[slot] @ a[slot] @ x`` to each row of ``y``, one slice of its columns at a time, rounded once.

    Args:
        y: [rows, sum of the slices' outputs]; the last dimension must have stride 1.
        x: [rows, inputs]; likewise.
        slots: [at least rows], int64, the adapter slot of each row; -1 for none.
        a: for each slice [slots, 1, rank, inputs]; the rank is a power of 2.
        b: for each slice [slots, 1, outputs, rank].
    """
    assert x.stride(1) == y.stride(1) == 1, (x.stride(), y.stride())
    if len(b) > _MOST_SLICES:
        done = sum(each.shape[2] for each in b[:_MOST_SLICES])
        add(y[:, done:], x, slots, a[_MOST_SLICES:], b[_MOST_SLICES:])
        a, b = a[:_MOST_SLICES], b[:_MOST_SLICES]
    rows, (rank, inputs) = x.shape[0], a[0].shape[2:]
    if not rows:
        return
    outputs = [each.shape[2] for each in b]
    blank = _MOST_SLICES - len(b)
    factors = [each for stacks in (a, b) for each in (*stacks, *[stacks[0]] * blank)]
    wide = min(triton.next_power_of_2(inputs), max(_INPUTS // rank, 32))
    tall = min(triton.next_power_of_2(max(outputs)), max(_OUTPUTS // rank, 32))
    parts = min(triton.cdiv(max(outputs), tall), triton.cdiv(_PROGRAMS, rows * len(b)))
    _add[rows, len(b), parts](
        *(y, y.stride(0), x, x.stride(0), slots, inputs, *factors, *outputs, *[0] * blank),
        **{"RANK": rank, "WIDE": wide, "TALL": tall},
    )


@triton.jit
def _add(
    y, y_pitch, x, x_pitch, slots, inputs, a0, a1, a2, b0, b1, b2, n0, n1, n2,
    RANK: tl.constexpr, WIDE: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if slot >= 0:
        a, b, outputs, first = a0, b0, n0, 0
        if tl.program_id(1) == 1:
            a, b, outputs, first = a1, b1, n1, n0
        if tl.program_id(1) == 2:
            a, b, outputs, first = a2, b2, n2, n0 + n1
        x += row * x_pitch
        y += row * y_pitch + first
        rank = tl.arange(0, RANK)
        a += slot * RANK * inputs + rank[:, None] * inputs
        b += slot * RANK * outputs + rank[None, :]
        terms = tl.zeros((RANK, WIDE), tl.float32)
        for start in range(0, inputs, WIDE):
            column = start + tl.arange(0, WIDE)
            there = column < inputs
            factor = tl.load(a + column[None, :], mask=there[None, :], other=0.0).to(tl.float32)
            terms += factor * tl.load(x + column, mask=there, other=0.0).to(tl.float32)[None, :]
        inner = tl.sum(terms, 1)[None, :]
        for start in range(tl.program_id(2) * TALL, outputs, tl.num_programs(2) * TALL):
            column = start + tl.arange(0, TALL)
            there = column < outputs
            factor = tl.load(b + column[:, None] * RANK, mask=there[:, None], other=0.0).to(tl.float32)
            share = tl.sum(factor * inner, 1)
            share += tl.load(y + column, mask=there, other=0.0).to(tl.float32)
            tl.store(y + column, share.to(y.dtype.element_ty), mask=there)
