"""GRPO arms of the learning benchmark: answers end as those of a run do, and a short training is evaluated."""

import dataclasses

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

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


def short_study(model):
    short = {"model_name": str(model), "population_size": 2, "batch_size": 8, "n_iterations": 3, "eval_freq": 1}
    study = STUDIES["countdown"]
    return dataclasses.replace(study, common={**study.common, **short, "eval_limit": 3, "max_tokens": 4})


@pytest.mark.parametrize("adapters", [{}, {"rank": 2}])
def test_held_out_questions_are_evaluated_between_answers(adapters, tiny_model) -> None:
    settings = {"learning_rate": 1e-4, "group": 4, "prompts": 2, **adapters}
    result = grpo.run(short_study(tiny_model), settings, 1, "none")
    assert result["answers"] == [0, 16, 32, 48]
    assert [len(each) for each in result["rewards"]] == [3] * 4
    assert len(result["train"]) == 6
    assert result["clock"] == sorted(result["clock"])
    assert result["peak_mb"] > 100


@pytest.mark.parametrize("rank", [None, 2])
def test_the_copy_that_answers_has_the_trained_weights(rank, tiny_model) -> None:
    trained, answering = (AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32) for _ in range(2))
    if rank:
        trained = get_peft_model(trained, grpo.adapters(rank))
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tokens = torch.arange(20, 40)[None]
    before = answering(tokens).logits
    grpo.copy_weights(trained, answering)
    expected, after = trained.eval()(tokens).logits, answering(tokens).logits
    assert (after - before).abs().max() > 0.01
    assert torch.allclose(after, expected, atol=1e-4)
