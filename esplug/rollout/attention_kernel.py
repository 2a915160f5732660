"""Triton kernel of attention while decoding: it stores each row's new key and value, and lets its query attend.

A program reads the keys and values of one key head of one row once, for all query heads that share them. No result
depends on the other rows, except that their number decides the tiles.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

_LEAST = 16  # query heads that a matrix product needs
_LOG2E = 1.4426950408889634


class Tiles(NamedTuple):
    """How a program reads a row: positions at a time, warps, and stages of the pipeline that reads ahead."""

    block: int
    warps: int
    stages: int


#: By the most programs for each processor of the GPU, as measured on an H200: a few programs must each read fast, many
#: must all be resident.
_TILES = {1.5: Tiles(64, 4, 7), 5: Tiles(32, 1, 5), float("inf"): Tiles(16, 1, 5)}
_WIDE = Tiles(32, 4, 5)  # for heads of more than 128 elements, which take more registers


def tiles(programs: int, processors: int, size: int) -> Tiles:
    """Return tiles for so many programs and heads of this size, on a GPU with so many processors.

    Other tiles add in another order.
    """
    if size > 128:
        return _WIDE
    return next(each for most, each in _TILES.items() if programs <= most * processors)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    places: torch.Tensor,
    output: torch.Tensor,
    scale: float,
    by: Tiles,
) -> None:
    """Store each row's new key and value, and let its query attend to all keys and values of the row.

    Args:
        query, key, value, cache, output: as in :meth:`~esplug.rollout.attention.RowAttention.forward`.
        table: pages of each row, int32[rows, pages].
        lengths: of the rows with the new token, int32.
        places: of the new keys and values, int64: page * positions of a page + position in it.
        scale: of the scores.
        by: how to read rows.

    Raises:
        ValueError: heads of a tensor do not follow one another in memory.
    """
    _, heads, size = query.shape
    output = output.view(-1, heads, size)
    if any(each.stride()[1:] != (size, 1) for each in (query, key, value, output)) or cache.stride(3) != 1:
        raise ValueError("heads do not follow one another in memory")
    group = heads // key.shape[1]
    _attend[(len(lengths), key.shape[1])](
        *(query, key, value, output, query.stride(0), key.stride(0), value.stride(0), output.stride(0)),
        *(cache, cache.stride(0), cache.stride(1), cache.stride(2)),
        *(table, table.stride(0), lengths, places, scale * _LOG2E),
        **{"HEADS": group, "PADDED": max(_LEAST, triton.next_power_of_2(group))},
        **{"SIZE": size, "WIDTH": triton.next_power_of_2(size), "PAGE": cache.shape[2], "BLOCK": by.block},
        **{"num_warps": by.warps, "num_stages": by.stages},
    )


@triton.jit
def _attend(
    queries, new_keys, new_values, output, query_pitch, key_pitch, value_pitch, output_pitch,
    cache, page_pitch, head_pitch, position_pitch, table, table_pitch, lengths, places, scale,
    HEADS: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Attend with the query heads of one key head of one row."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane, dim = tl.arange(0, PADDED), tl.arange(0, WIDTH)
    known = dim < SIZE
    asked = (lane < HEADS)[:, None] & known[None, :]
    at = (head * HEADS + lane)[:, None] * SIZE + dim[None, :]
    query = tl.load(queries + row * query_pitch + at, mask=asked, other=0.0)
    new_key = tl.load(new_keys + row * key_pitch + head * SIZE + dim, mask=known, other=0.0)
    new_value = tl.load(new_values + row * value_pitch + head * SIZE + dim, mask=known, other=0.0)
    keys = cache + head * head_pitch + dim
    place = tl.load(places + row)
    stored = (place // PAGE) * page_pitch + (place % PAGE) * position_pitch
    tl.store(keys + stored, new_key, mask=known)
    tl.store(keys + stored + SIZE, new_value, mask=known)

    top = tl.sum(query.to(tl.float32) * new_key.to(tl.float32)[None, :], 1) * scale
    total = tl.full((PADDED,), 1.0, tl.float32)
    mixed = tl.zeros((PADDED, WIDTH), tl.float32) + new_value.to(tl.float32)[None, :]
    past = tl.load(lengths + row) - 1
    pages = table + row * table_pitch
    for start in range(0, past, BLOCK):
        position = start + tl.arange(0, BLOCK)
        there = position < past
        page = tl.load(pages + position // PAGE, mask=there, other=0).to(tl.int64)
        first = (page * page_pitch + (position % PAGE) * position_pitch)[:, None]
        readable = there[:, None] & known[None, :]
        key = tl.load(keys[None, :] + first, mask=readable, other=0.0)
        value = tl.load(keys[None, :] + first + SIZE, mask=readable, other=0.0)
        score = tl.where(there[None, :], tl.dot(query, tl.trans(key)) * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight, kept = tl.exp2(score - higher[:, None]), tl.exp2(top - higher)
        mixed = tl.dot(weight.to(value.dtype), value, mixed * kept[:, None])
        total = total * kept + tl.sum(weight, 1)
        top = higher
    tl.store(output + row * output_pitch + at, mixed / total[:, None], mask=asked)
