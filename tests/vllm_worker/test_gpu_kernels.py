"""Triton kernels for adapters and undefined logits, run by Triton's interpreter."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers.adapters import exact_sums

RANKS = (1, 8, 16, 64)  # that esplug asks vLLM for


@pytest.fixture(scope="module")
def adapters(interpreted):
    return interpreted("esplug.vllm_worker.adapter_kernel")


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(-1, 2), min_size=1, max_size=6),
    st.sampled_from(RANKS),
    st.integers(1, 300),
    st.lists(st.integers(1, 200), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@example([1, -1], 1, 4100, [4200, 7], torch.float32)  # more than a program holds at a time
def test_every_row_gets_its_own_adapter_s_share(adapters, slots, rank, inputs, outputs, dtype) -> None:
    rows, table = len(slots), torch.tensor([*slots, 2, 0])  # a batch's table is longer than the batch
    x = drawn(1, rows, inputs + 3, dtype=dtype)[:, :inputs]  # rows are not contiguous
    y = drawn(2, rows, sum(outputs) + 1, dtype=dtype)[:, : sum(outputs)]
    a = [drawn(3 + i, 3, 1, rank, inputs, dtype=dtype) for i in range(len(outputs))]
    b = [drawn(6 + i, 3, 1, n, rank, dtype=dtype) for i, n in enumerate(outputs)]
    exact, before = exact_sums(y, x, table, a, b), y.clone()
    apart = [y[i : i + 1].clone() for i in range(rows)]
    adapters.add(y, x, table, a, b)
    with pytest.MonkeyPatch.context() as patch:  # alone and divided differently, a row gets the same bits
        patch.setattr(adapters, "_PROGRAMS", 1)
        for i, row in enumerate(apart):
            adapters.add(row, x[i : i + 1], table[i:], a, b)
    assert torch.equal(y, torch.cat(apart))
    scale = (exact.abs() + before.double().abs()).max()
    assert (y.double() - exact).abs().max() <= {torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps) * scale
    untouched = [i for i, slot in enumerate(slots) if slot < 0]
    assert torch.equal(y[untouched], before[untouched])


def test_nan_in_one_member_does_not_reach_others(adapters) -> None:
    x, y = drawn(1, 3, 10), drawn(2, 3, 7)
    a, b = drawn(3, 2, 1, 1, 10), drawn(4, 2, 1, 7, 1)
    slots = torch.tensor([0, 1, -1])
    good = y.clone()
    adapters.add(good, x, slots, [a], [b])
    a[1] = float("nan")
    adapters.add(y, x, slots, [a], [b])
    assert torch.equal(y[[0, 2]], good[[0, 2]])
    assert y[1].isnan().all()


def test_an_empty_batch_stays_empty(adapters) -> None:
    y = drawn(1, 0, 7)
    adapters.add(y, drawn(2, 0, 10), torch.tensor([0]), [drawn(3, 2, 1, 1, 10)], [drawn(4, 2, 1, 7, 1)])
    assert not len(y)


VALUES = st.sampled_from([0.5, -3.0, 1e30, -float("inf"), float("inf"), -float("nan"), float("nan")])


@settings(max_examples=50, deadline=None)
@given(
    st.data(), st.integers(0, 5), st.integers(1, 20), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_undefined_logits_are_counted_as_on_a_cpu(interpreted, data, rows, vocabulary, of_members, dtype) -> None:
    from esplug.vllm_worker.undefined_logits import count_undefined

    spread = 9000 if vocabulary == 20 else vocabulary  # more than a program reads at a time
    logits = torch.zeros(rows, spread + 2, dtype=dtype)[:, :spread]
    for row in range(rows):
        few = data.draw(st.lists(VALUES, min_size=vocabulary, max_size=vocabulary))
        logits[row, -vocabulary:] = torch.tensor(few)
        logits[row, : data.draw(st.sampled_from([0, spread - vocabulary, spread]))] = -float("inf")
    slots = data.draw(st.lists(st.integers(-1, 2), min_size=rows, max_size=rows)) if of_members else None
    table = None if slots is None else torch.tensor(slots, dtype=torch.int64)
    counts, expected = (torch.arange(4) for _ in range(2))
    interpreted("esplug.vllm_worker.logits_kernel").count_undefined(logits, table, counts)
    count_undefined(logits, table, expected)
    assert torch.equal(counts, expected)
