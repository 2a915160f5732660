"""Texts made at once are those that are made token by token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from esplug.detokenizer import Detokenizer

WORDS = ["▁the", "▁cat", "s", "▁", "é", "<0xC3>", "<0xA9>", "<0xFF>", "</s>"]


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


def vllms(tokenizer: PreTrainedTokenizerFast, prompt: list[int], answer: list[int]) -> str | None:
    """Return vLLM's text, if it does not lose its way among bytes that are no text."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    names = EngineCoreRequest.__struct_fields__
    request = EngineCoreRequest(
        **dict.fromkeys(names) | {"request_id": "1", "prompt_token_ids": prompt, "sampling_params": SamplingParams()}
    )
    stream = FastIncrementalDetokenizer(tokenizer, request)
    begun = stream.stream
    for token in answer:
        stream.update([token], False)
    return None if stream.stream is not begun else stream.get_next_output_text(finished=True, delta=False)


@pytest.mark.vllm
@settings(deadline=None)
@given(st.sampled_from(TOKENIZERS), st.data())
def test_a_text_is_what_vllm_makes_of_it(tokenizer, data) -> None:
    ids = st.lists(st.integers(0, len(tokenizer) - 1), max_size=12)
    prompt, answer = data.draw(ids.filter(len)), data.draw(ids)
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.works
    expected = vllms(tokenizer, prompt, answer)
    text = detokenizer.text(prompt, answer)
    assert text == expected or (expected is None and isinstance(text, str))


def test_the_space_after_a_prompt_is_kept() -> None:
    assert Detokenizer(TOKENIZERS[0]).text([0], [1, 2]) == " cats"


def test_what_of_a_character_is_incomplete_is_left_out() -> None:
    assert Detokenizer(TOKENIZERS[0]).text([0], [1, 5]) == " cat"


def test_other_tokenizers_are_left_to_vllm() -> None:
    assert not Detokenizer(object()).works
