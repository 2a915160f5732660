"""Bookkeeping on the host: which answers have ended, which pages they hold, and how prompts are packed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esplug.rollout.answers import Answers
from esplug.rollout.pages import Pages, shared_positions
from esplug.rollout.prefill import Stretch, prefill
from esplug.rollout.requests import Request, Rules, Sampler
from esplug.rollout.rows import LOOK_EVERY

TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=40)


class Stop:
    """Stops at 7 followed by 3."""

    tokens = frozenset({3})

    def complete(self, prompt, answer) -> bool:
        return list(answer[-2:]) == [7, 3]


def _decoded(prompts: list[list[int]], streams: list[list[int]], rules: Rules, steps: list[int]) -> Answers:
    """Feed the tokens that a device would decode, in looks that arrive one later, as in the loop."""
    answers = Answers([Request(prompt) for prompt in prompts], rules, 64, 10)
    rows, before = np.arange(len(prompts)), None
    for most in [*steps, *[LOOK_EVERY] * 40]:
        look = answers.launch(rows, most)
        if before is not None:
            answers.receive(*before)
        if look is None and before is None:
            break
        before = None
        if look is not None:
            recent = np.full((len(prompts), LOOK_EVERY), 9, dtype=np.int32)
            for row, prompt in enumerate(prompts):
                for step in range(look.steps):
                    token = streams[row][(look.before[row] + step) % len(streams[row])]
                    recent[row, (len(prompt) - 1 + look.before[row] + step) % LOOK_EVERY] = token
            before = look, recent
    return answers


def _by_hand(prompt: list[int], stream: list[int], rules: Rules) -> tuple[list[int], bool]:
    tokens: list[int] = []
    for step in range(min(rules.max_tokens, 64 - len(prompt))):
        tokens.append(stream[step % len(stream)])
        if tokens[-1] in rules.end_tokens or (rules.stops and rules.stops.complete(prompt, tokens)):
            return tokens, True
    return tokens, False


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=6), st.integers(1, 30), st.data())
@settings(deadline=None)
def test_answers_end_where_they_should(pairs, most, data) -> None:
    prompts, streams = [list(each) for each in zip(*pairs, strict=True)]
    ends = frozenset(data.draw(st.sets(st.integers(0, 9), max_size=2)))
    rules = Rules(most, end_tokens=ends | {99}, stops=data.draw(st.sampled_from([None, Stop()])))
    steps = data.draw(st.lists(st.integers(1, LOOK_EVERY), max_size=5))
    answers = _decoded(prompts, streams, rules, steps)
    assert answers.done.all()
    found = [(answer.tokens, answer.finished) for answer in answers.results()]
    assert found == [_by_hand(prompt, stream, rules) for prompt, stream in zip(prompts, streams, strict=True)]


def test_uniform_numbers_follow_the_answer_wherever_its_row_is() -> None:
    requests = [Request([1] * length, seed=length) for length in (3, 6)]
    answers = Answers(requests, Rules(9, Sampler(1.0)), 64, 10)
    from esplug.rollout.sampling import uniforms

    seen: dict[int, list[float]] = {0: [], 1: []}
    for order in ([0, 1], [1, 0], [1, 0]):
        look = answers.launch(np.array(order), LOOK_EVERY)
        numbers = answers.uniforms(look)
        for row, index in enumerate(order):
            first = len(requests[index].prompt) - 1 + int(look.before[row])
            seen[index] += [numbers[row, (first + step) % LOOK_EVERY] for step in range(look.steps)]
    for index in (0, 1):
        assert seen[index] == uniforms(requests[index].seed, 9).tolist()[: len(seen[index])]
        assert len(seen[index]) == 9


@pytest.mark.parametrize("prompt", [[], [1] * 64])
def test_a_prompt_without_room_is_an_error(prompt) -> None:
    with pytest.raises(ValueError, match="prompts must have 1 to 63 tokens"):
        Answers([Request([1]), Request(prompt)], Rules(4), 64, 10)


@given(st.lists(st.one_of(st.integers(1, 5), st.just(None)), max_size=40))
def test_no_page_is_handed_out_twice(steps) -> None:
    pages, held = Pages(1, 20, 16), []
    for count in steps:
        if count is None:
            if held:
                pages.give_back(held.pop(0))
        elif pages.room_for(count):
            held.append(pages.take(count))
            assert len(held[-1]) == count
        flat = [page for each in held for page in each]
        assert len(set(flat)) == len(flat) <= 19
        assert all(1 <= page < 20 for page in flat)
        assert pages.room_for(19 - len(flat))
        assert not pages.room_for(20 - len(flat))


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=5), st.integers(1, 4))
def test_shared_positions_are_whole_pages_before_every_last_token(prompts, size) -> None:
    count = shared_positions([Request(prompt) for prompt in prompts], size)
    assert count % size == 0
    if len(prompts) == 1:
        assert count == 0
    else:
        assert count < min(map(len, prompts))
        assert len({tuple(prompt[:count]) for prompt in prompts}) == 1
        longer = count + size
        assert longer >= min(map(len, prompts)) or len({tuple(prompt[:longer]) for prompt in prompts}) > 1


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), max_size=8), st.integers(1, 16), st.integers(1, 4))
@settings(deadline=None)
def test_packed_prompts_write_each_token_once_in_its_place(sizes, most_tokens, most_rows) -> None:
    written: dict[int, tuple[int, int, int]] = {}
    lengths: list[int] = []

    class Model(SimpleNamespace):
        def use_adapters(self, slots) -> None:
            self.adapters = slots

        def hidden(self, batch) -> None:
            assert len(batch.tokens) <= most_tokens
            assert len(batch.lengths) <= most_rows
            assert batch.starts_on_host[-1] == len(batch.tokens) == len(self.adapters)
            assert batch.longest == batch.lengths.max()
            for row in range(len(batch.lengths)):
                first, end = batch.starts[row], batch.starts[row + 1]
                assert end - first <= batch.most_new
                assert batch.positions[end - 1] + 1 == batch.lengths[row]
                for index in range(first, end):
                    position, place = int(batch.positions[index]), int(batch.places[index])
                    assert batch.table[row, position // 4] == place // 4
                    assert place not in written
                    written[place] = int(batch.tokens[index]), position, int(self.adapters[index])
            lengths.append(len(batch.tokens))

    stretches, expected, page = [], {}, 1
    for adapter, (start, count) in enumerate(sizes):
        pages = list(range(page, page + (start + count) // 4 + 1))
        page = pages[-1] + 1
        tokens = [100 * adapter + i for i in range(count)]
        stretches.append(Stretch(tokens, start, pages, adapter))
        for i, token in enumerate(tokens):
            expected[pages[(start + i) // 4] * 4 + (start + i) % 4] = token, start + i, adapter
    model = Model(most_tokens=most_tokens, most_rows=most_rows, page_size=4, device=torch.device("cpu"))
    prefill(model, stretches)
    assert written == expected
    assert all(each > 0 for each in lengths)
