"""State of the rows: a step by the Triton kernel equals a step by torch, and rows keep their answers when they move."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esplug.rollout.requests import GREEDY
from esplug.rollout.rows import LOOK_EVERY, NewRow, Rows

PAGE = 4
VALUES = st.sampled_from([0.5, -3.0, 2.0, 2.0, 1e30, -float("inf"), float("inf"), float("nan")])


def _rows(count: int, vocabulary: int) -> Rows:
    return Rows(count, PAGE, 40, vocabulary, 2, torch.device("cpu"))


def _state(rows: Rows) -> list[list]:
    return [tensor.tolist() for tensor in (*rows._state, rows.recent, rows.undefined)]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_kernel_advances_rows_as_torch_does(interpreted, data) -> None:
    kernel = interpreted("esplug.rollout.step_kernel")
    kernel._BLOCK = data.draw(st.sampled_from([2, 4, 64]))
    count, vocabulary = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    drawn = st.lists(VALUES, min_size=vocabulary, max_size=vocabulary)
    one, other = _rows(count, vocabulary), _rows(count, vocabulary)
    new = []
    for row in range(count):
        position = data.draw(st.integers(0, 30))
        last = position + data.draw(st.integers(0, 5))
        pages = [1 + 11 * row + i for i in range(last // PAGE + 1)]
        new.append(
            NewRow(data.draw(st.integers(0, vocabulary - 1)), position, last, pages, data.draw(st.integers(0, 2)))
        )
    ends = torch.tensor(data.draw(st.lists(st.booleans(), min_size=vocabulary, max_size=vocabulary)))
    for rows in (one, other):
        rows.rearrange([], new, count)
        rows.ends.copy_(ends)
    for _ in range(3):
        logits = torch.tensor([data.draw(drawn) for _ in range(count)])
        one.advance(count, logits, GREEDY)
        state = other._state, other.recent, other.ends, other.undefined
        kernel.advance_greedily(logits, *state[0], *state[1:], other.page_size)
        assert _state(other) == _state(one)


def test_a_step_by_hand() -> None:
    rows = _rows(3, 10)
    rows.ends[7] = True
    rows.rearrange([], [NewRow(1, 3, 9, [5, 6, 7]), NewRow(2, 2, 2, [8]), NewRow(3, 0, 9, [9, 4, 3])], 3)
    assert rows.place.tolist() == [5 * PAGE + 3, 8 * PAGE + 2, 9 * PAGE]
    logits = torch.zeros(3, 10)
    logits[0, 4], logits[1, 5], logits[2, 7] = 1, 1, 1
    rows.advance(3, logits, GREEDY)
    assert rows.recent[0, 3 % LOOK_EVERY] == 4
    assert rows.recent[1, 2 % LOOK_EVERY] == 5
    assert rows.recent[2, 0] == 7
    assert rows.active.tolist() == [True, False, False]  # the second is as long as it may be, the third has ended
    assert rows.token.tolist() == [4, 2, 3]
    assert rows.position.tolist() == [4, 2, 0]
    assert rows.length.tolist() == [5, 3, 1]
    assert rows.place.tolist() == [6 * PAGE, 8 * PAGE + 2, 9 * PAGE]


@given(st.sets(st.integers(0, 5)), st.integers(0, 3), st.integers(0, 2))
def test_rows_move_whole(kept, added, unused) -> None:
    rows = _rows(12, 10)
    old = [NewRow(i, 3 * i, 3 * i + 8, [i + 1, i + 10, *range(20, 26)], i % 3) for i in range(6)]
    rows.rearrange([], old, 6)
    before = list(zip(*[tensor.tolist() for tensor in rows._state], strict=True))
    new = [NewRow(9, 5, 6, [30 + i, 40 + i]) for i in range(added)]
    size = len(kept) + added + unused
    rows.rearrange(sorted(kept), new, size)
    after = list(zip(*[tensor.tolist() for tensor in rows._state], strict=True))
    assert after[: len(kept)] == [before[row] for row in sorted(kept)]
    assert [row[0] for row in after[len(kept) : size]] == [9] * added + [0] * unused
    assert rows.place[size - unused : size].tolist() == [0] * unused
    assert rows.length[size - unused : size].tolist() == [1] * unused


@pytest.mark.parametrize("count", [0, 1])
def test_no_rows(count) -> None:
    rows = _rows(4, 10)
    rows.rearrange([], [], count)
    rows.advance(count, torch.zeros(count, 10), GREEDY)
    assert not rows.undefined.any()
