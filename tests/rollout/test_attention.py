"""Attention of rows: the Triton kernel equals dense attention, and stores the new keys and values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3}  # the interpreter multiplies no bfloat16


def _dense(query, keys, values, scale):
    """Attend with one row's query [heads, size] to its keys and values [positions, key heads, size], in float64."""
    group = len(query) // keys.shape[1]
    keys, values = (each.double().repeat_interleave(group, 1) for each in (keys, values))
    weights = torch.softmax(torch.einsum("hd,phd->hp", query.double(), keys) * scale, -1)
    return torch.einsum("hp,phd->hd", weights, values)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_rows_attend_to_all_their_tokens(interpreted, data) -> None:
    kernel = interpreted("esplug.rollout.attention_kernel")
    by = kernel.Tiles(data.draw(st.sampled_from([16, 32])), 1, 1)
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]))
    key_heads, group = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 3, 7, 17]))
    size, page = data.draw(st.sampled_from([16, 24, 64])), data.draw(st.sampled_from([16, 32]))
    lengths = data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=3))
    chosen = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))

    def some(*shape):
        return torch.randn(shape, generator=chosen).to(dtype)

    count, most = len(lengths), -(-max(lengths) // page)
    by_position = data.draw(st.booleans())  # vLLM's layouts of a page: heads of a position together, or apart
    pages = 1 + count * most
    cache = (
        some(pages, page, key_heads, 2 * size).transpose(1, 2)
        if by_position
        else some(pages, key_heads, page, 2 * size)
    )
    before = cache.clone()
    table = (1 + torch.randperm(count * most, generator=chosen)).reshape(count, most).to(torch.int32)
    past = torch.tensor(lengths) - 1
    places = table.gather(1, (past // page)[:, None])[:, 0].long() * page + past % page
    mixed = some(count, (group + 2) * key_heads, size)  # query, key and value, as a model computes them together
    query, key, value = mixed.split([group * key_heads, key_heads, key_heads], 1)
    output = torch.full((count, group * key_heads * size), float("nan"), dtype=dtype)

    kernel.attend(query, key, value, cache, table, torch.tensor(lengths, dtype=torch.int32), places, output, 0.3, by)

    for row, length in enumerate(lengths):
        where = [(int(table[row, i // page]), i % page) for i in range(length - 1)]
        keys = torch.stack([*(before[p, :, i, :size] for p, i in where), key[row]])
        values = torch.stack([*(before[p, :, i, size:] for p, i in where), value[row]])
        expected = _dense(query[row], keys, values, 0.3)
        assert torch.allclose(output[row].reshape(-1, size).double(), expected, atol=TOLERANCE[dtype], rtol=0)
        before[places[row] // page, :, places[row] % page] = torch.cat([key[row], value[row]], 1)
    assert torch.equal(cache, before)  # nothing else was written


def test_heads_that_are_apart_in_memory_are_refused(interpreted) -> None:
    kernel = interpreted("esplug.rollout.attention_kernel")
    heads = torch.zeros(1, 16, 2).transpose(1, 2)
    one = torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="follow one another"):
        kernel.attend(
            heads,
            heads,
            heads,
            torch.zeros(2, 2, 16, 32),
            one[:, None],
            one,
            one.long(),
            torch.zeros(1, 32),
            1.0,
            kernel.Tiles(16, 1, 1),
        )
