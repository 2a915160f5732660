"""Every id that a model's files, tokenizer or chat format name ends an answer; malformed ones are one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from esplug.data.end_tokens import end_tokens
from esplug.errors import UserError


class Vocabulary:
    """A tokenizer of 100 tokens with the end-of-text token 2."""

    def __init__(self, eos: int | None = 2, **added: int) -> None:
        self.eos_token_id, self.added = eos, added

    def __len__(self) -> int:
        return 100

    def get_added_vocab(self) -> dict[str, int]:
        return self.added


ABSENT = object()


def folder_with(folder: Path, config: Any, generation: Any) -> Path:
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        if content is not ABSENT:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def eos(ids: Any) -> dict[str, Any]:
    return {"eos_token_id": ids}


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, ABSENT, {2}),
        ({}, {}, {2}),
        (eos(None), eos(None), {2}),
        (eos([]), eos([]), {2}),
        (eos(5), ABSENT, {2, 5}),
        (eos([5, 6]), {}, {2, 5, 6}),
        ({}, eos(7), {2, 7}),
        (eos(0), eos([7, 8, 7]), {0, 2, 7, 8}),
        (eos(5), eos([5, 2]), {2, 5}),
        ({"text_config": eos([9, 10])}, eos(7), {2, 7, 9, 10}),
        ({"text_config": {"text_config": eos(11)} | eos(9)} | eos(5), ABSENT, {2, 5, 9, 11}),
        ({"thinker_config": {"text_config": eos(12)}}, ABSENT, {2, 12}),
        ({"llm_config": eos(13), "language_config": eos(14)}, ABSENT, {2, 13, 14}),
        ({"vision_config": eos(15), "text_config": None}, ABSENT, {2}),
        ({"vocab_size": 120} | eos(110), ABSENT, {2, 110}),
        ({"text_config": {"vocab_size": 130}}, eos(125), {2, 125}),
    ],
)
def test_the_union_of_all_sources_counts(config, generation, expected, tmp_path, capsys) -> None:
    found = end_tokens(folder_with(tmp_path, config, generation), Vocabulary())
    assert found == tuple(sorted(expected))
    assert capsys.readouterr().out == ""


def test_turn_ends_count_and_a_tokenizer_may_have_no_end_of_text(tmp_path) -> None:
    folder_with(tmp_path, {}, eos([9]))
    added = {"<|im_end|>": 50, "<end_of_turn>": 51, "<tool>": 52}
    assert end_tokens(tmp_path, Vocabulary(None, **added)) == (9, 50, 51)
    assert end_tokens(tmp_path, Vocabulary(None)) == (9,)


@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(("ids", "outside"), [(100, "100"), (-1, "-1"), ([5, 100, 10**30], f"100, {10**30}")])
def test_ids_that_the_model_does_not_have_are_reported(where, ids, outside, tmp_path, capsys) -> None:
    contents = {"config.json": {}, "generation_config.json": {}} | {where: eos(ids)}
    assert set(end_tokens(folder_with(tmp_path, *contents.values()), Vocabulary())) <= {2, 5}
    said = " ".join(capsys.readouterr().out.split())
    assert f"{where}: eos_token_id {outside} is not among the model's 100 tokens" in said


@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("ids", [True, [5, False], "5", ["5"], 5.0, [None], {"id": 5}, [[5]], "x" * 1000])
def test_a_malformed_value_is_one_line(where, ids, tmp_path) -> None:
    contents = {"config.json": {}, "generation_config.json": {}} | {where: eos(ids)}
    with pytest.raises(UserError, match=rf"{where}: eos_token_id must be an integer or a list of integers, not ") as no:
        end_tokens(folder_with(tmp_path, *contents.values()), Vocabulary())
    assert "\n" not in str(no.value)
    assert len(str(no.value)) < 400


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "null", "\x00", "[" * 100_000])
def test_a_damaged_file_is_one_line(content, tmp_path) -> None:
    with pytest.raises(UserError, match=r"generation_config\.json: ") as no:
        end_tokens(folder_with(tmp_path, {}, content), Vocabulary())
    assert "\n" not in str(no.value)


def test_an_answer_ends_where_a_turn_ends(small_model, tiny_model) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(small_model)
    assert "<|im_end|>" in tokenizer.convert_ids_to_tokens(end_tokens(small_model, tokenizer))
    assert end_tokens(tiny_model, AutoTokenizer.from_pretrained(tiny_model)) == (2,)
