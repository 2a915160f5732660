"""GRPO arms of the learning benchmark: answers end as those of a run do, and a short training is evaluated."""

import dataclasses

import pytest

from benchmarks.learning import grpo
from benchmarks.learning.studies import STUDIES


@pytest.mark.parametrize(
    ("text", "kept"),
    [("12.3456", "12."), ("123456", "123456"), (".12", "."), ("1$2.3", "1$"), ("$", "$")],
)
def test_an_answer_ends_with_its_stop_text_or_its_end(text, kept) -> None:
    ids = [ord(each) for each in text]
    found = grpo.cut(ids, {ord("$")}, ["."], lambda tokens, **_: "".join(map(chr, tokens)))
    assert "".join(map(chr, found)) == kept


def test_held_out_questions_are_evaluated_between_answers(tiny_model) -> None:
    short = {"model_name": str(tiny_model), "population_size": 2, "batch_size": 8, "n_iterations": 3, "eval_freq": 1}
    study = STUDIES["countdown"]
    study = dataclasses.replace(study, common={**study.common, **short, "eval_limit": 3, "max_tokens": 4})
    result = grpo.run(study, {"learning_rate": 1e-4, "group": 4, "prompts": 2}, 1, "none")
    assert result["answers"] == [0, 16, 32, 48]
    assert [len(each) for each in result["rewards"]] == [3] * 4
    assert len(result["train"]) == 6
    assert result["clock"] == sorted(result["clock"])
    assert result["peak_mb"] > 100
