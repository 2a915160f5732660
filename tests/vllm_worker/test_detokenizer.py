"""Detokenizer: whole answers get the same texts as token by token in vLLM."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from esplug.vllm_worker.detokenizer import Detokenizer

WORDS = ["▁the", "▁cat", "s", "▁", "é", "<0xC3>", "<0xA9>", "<0xFF>", "</s>", ">", "▁s>", "<0x3E>", "s>s"]


def _by_spaces() -> PreTrainedTokenizerFast:
    """A tokenizer whose decoder drops the first space of a text, as Llama 2's does, and falls back to bytes."""
    tokenizer = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(WORDS)}, merges=[], byte_fallback=True))
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def _by_bytes() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: n for n, byte in enumerate([*alphabet, "</s>"])}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


TOKENIZERS = [_by_spaces(), _by_bytes()]


def vllms(tokenizer: PreTrainedTokenizerFast, prompt: list[int], answer: list[int], stop: Sequence[str] = ()) -> Any:
    """Return vLLM's text, its length in tokens, and whether it stopped; ``None`` if vLLM starts over at bad bytes."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    names, sampling = (
        EngineCoreRequest.__struct_fields__,
        SamplingParams(stop=list(stop), include_stop_str_in_output=True),
    )
    request = EngineCoreRequest(
        **dict.fromkeys(names) | {"request_id": "1", "prompt_token_ids": prompt, "sampling_params": sampling}
    )
    stream = FastIncrementalDetokenizer(tokenizer, request)
    begun, length, ended = stream.stream, 0, False
    while length < len(answer) and not ended:
        ended = stream.update([answer[length]], False) is not None
        length += 1
    if stream.stream is not begun:
        return None
    return stream.get_next_output_text(finished=True, delta=False), length, ended


@pytest.mark.vllm
@settings(deadline=None)
@given(st.sampled_from(TOKENIZERS), st.data())
def test_texts_equal_those_of_vllm(tokenizer, data) -> None:
    ids = st.lists(st.integers(0, len(tokenizer) - 1), max_size=12)
    prompt, answer = data.draw(ids.filter(len)), data.draw(ids)
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.works
    expected = vllms(tokenizer, prompt, answer)
    text = detokenizer.text(prompt, answer)
    assert expected == (text, len(answer), False) or (expected is None and isinstance(text, str))


@pytest.mark.vllm
@settings(deadline=None, max_examples=300)
@given(st.sampled_from(TOKENIZERS), st.lists(st.sampled_from([">", "s>", "s>s", " s>", "s"]), min_size=1), st.data())
def test_an_answer_stops_where_vllm_stops_it(tokenizer, texts, data) -> None:
    alone = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    letters = [token for token, text in enumerate(alone) if set(text) & set("> sé")]
    halves = [token for token, text in enumerate(alone) if "\ufffd" in text][::20]
    prompt = data.draw(st.lists(st.sampled_from(letters), min_size=1, max_size=12))  # ends with whole characters
    answer = data.draw(st.lists(st.sampled_from([*letters, *halves, len(tokenizer) - 1]), min_size=1, max_size=12))
    stops = Detokenizer(tokenizer).stops(tuple(texts))
    length = next((n for n in range(1, len(answer) + 1) if stops.complete(prompt, answer[:n])), None)
    text = stops.cut(Detokenizer(tokenizer).text(prompt, answer[:length]))
    expected = vllms(tokenizer, prompt, answer, texts)
    assume(expected is not None)
    assert (text, length or len(answer), length is not None) == expected


def test_an_answer_of_only_last_letters_is_not_searched_from_its_start_each_time(monkeypatch) -> None:
    seen: list[int] = []
    read = Detokenizer.text
    monkeypatch.setattr(Detokenizer, "text", lambda self, *ids: (seen.append(sum(map(len, ids))), read(self, *ids))[1])
    stops = Detokenizer(TOKENIZERS[0]).stops(("cat>",))
    assert not any(stops.complete([0], [9] * n) for n in range(1, 400))
    assert max(seen) < 50
    assert stops.complete([0], [9] * 400 + [1, 9])


@pytest.mark.parametrize("texts", [("\n",), ("> ",), ("é",), (">", "…")])
def test_stop_texts_that_no_single_token_completes_are_left_to_vllm(texts) -> None:
    assert all(Detokenizer(tokenizer).stops(texts) is None for tokenizer in TOKENIZERS)


def test_half_a_character_after_a_stop_text_is_left_to_vllm() -> None:
    vocabulary = {"s": 0, ">Ã": 1, "©": 2}  # the second has the first half of what the third ends
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.ByteLevel()
    detokenizer = Detokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert detokenizer.stops((">",)) is None
    assert detokenizer.stops(("s",)).tokens == {0}


def test_the_space_after_a_prompt_is_kept() -> None:
    assert Detokenizer(TOKENIZERS[0]).text([0], [1, 2]) == " cats"


def test_an_incomplete_last_character_is_left_out() -> None:
    assert Detokenizer(TOKENIZERS[0]).text([0], [1, 5]) == " cat"


def test_other_tokenizers_are_left_to_vllm() -> None:
    assert not Detokenizer(object()).works
