"""GRPO arms of the learning benchmark: answers end as those of a run do, and a short training is evaluated."""

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

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


def train_with_vllm(model):
    """Train with rewards that differ. Returns the result, and after each evaluation whether vLLM has its weights."""
    from vllm.model_executor.layers import utils

    def leave_unpacked(layer, remove_weight) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    def checked(engine, *others):
        found = greedy(engine, *others)
        theirs = engine.llm.llm_engine.model_executor.driver_worker.model_runner.model.model.norm.weight
        same.append(torch.equal(theirs, engine.model.model.norm.weight.to(theirs.dtype)))
        return found

    # TRL loads weights as they are on a GPU. On a CPU, vLLM packs them when it starts and keeps no others.
    utils.dispatch_cpu_unquantized_gemm = leave_unpacked
    (greedy, same), of_task = (grpo.greedy_of_vllm, []), grpo.of_task
    grpo.greedy_of_vllm = checked
    grpo.of_task = lambda *which: dataclasses.replace(of_task(*which), reward=letters)
    return grpo.run(
        short_study(model), {"learning_rate": 0.01, "group": 4, "prompts": 2, "vllm": True}, 1, "none"
    ), same


def letters(completions, esplug_row, **_):
    return [float(len(set(text))) for text in completions]


@pytest.mark.vllm
def test_vllm_answers_with_the_trained_weights(tiny_model, monkeypatch) -> None:
    for name, value in {"KVCACHE_SPACE": "1", "CI_ENV": "1", "OMP_THREADS_BIND": "nobind"}.items():
        monkeypatch.setenv(f"VLLM_CPU_{name}", value)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:  # TRL sets RANK and starts a group
        result, same = apart.submit(train_with_vllm, tiny_model).result()
    assert same == [True] * 4
    assert result["answers"] == [0, 16, 32, 48]
    assert [len(each) for each in result["rewards"]] == [3] * 4
    assert len(result["train"]) == 6
    assert result["generating"] > 0


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
