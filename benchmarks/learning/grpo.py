"""GRPO arms of the learning benchmark: TRL's ``GRPOTrainer`` on the prompts, rewards and held-out questions of a study.

All weights, or adapters, are trained in float32, with bfloat16 autocasting on a GPU. A copy of the model, there in
bfloat16, answers through ``transformers``, or through vLLM, which TRL then runs in the same process. Answers are
sampled at temperature 1, without a reference model (``beta=0``, TRL's default), and each is used for one step. They end
with the study's stop text, as in ``esplug train``. Held-out questions are answered greedily.
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.learning import tiny_sums
from benchmarks.learning.studies import Study

_AT_ONCE = 256  # answers that are generated together
_STOP_TOKENS = 8  # at most so many tokens make up a stop text
_LOOK_EVERY = 4  # tokens between searches for stop texts


@dataclass(frozen=True)
class Problem:
    """Questions to train and to evaluate on, and the rewards of answers to them, by row."""

    train: Any  # datasets.Dataset with columns prompt and esplug_row
    held_out: Any
    reward: Callable[..., list[float]]
    stop: Sequence[str]  # texts that end an answer
    close: Callable[[], None] = lambda: None


@dataclass
class Curve:
    """Held-out rewards so far, with the number of answers and the seconds of training before each."""

    answers: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)


def run(study: Study, settings: Mapping[str, Any], seed: int, gpu: str) -> dict[str, Any]:
    """Train with TRL, evaluating as often as the study does. Returns the result's fields.

    Args:
        study: its common settings give the model, lengths and the number of answers.
        settings: ``learning_rate``, ``group`` (answers to a prompt), ``prompts`` (of a step), for adapters of all
            linear layers (LoRA) their ``rank``, and ``vllm`` if vLLM is to answer.
        seed: of the order of prompts and of sampling.
        gpu: index of a GPU, or ``none``.
    """
    if gpu != "none":
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA starts: with several, Trainer would use them all
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    common, step = study.common, settings["group"] * settings["prompts"]
    per_iteration = common["population_size"] * common["batch_size"]
    between = per_iteration * common["eval_freq"]
    steps = per_iteration * common["n_iterations"] // step
    device = "cpu" if gpu == "none" else "cuda"
    problem = of_task(study, seed) if study.task else sums()
    tokenizer = AutoTokenizer.from_pretrained(common["model_name"], padding_side="left")
    tokenizer.eos_token = tokenizer.eos_token or "</s>"  # the tiny model's has none
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    load = partial(AutoModelForCausalLM.from_pretrained, common["model_name"])
    model, vllm = load(dtype=torch.float32).to(device), settings.get("vllm", False)
    answering = None if vllm else load(dtype=torch.float32 if device == "cpu" else torch.bfloat16).to(device)
    answer = partial(answers, tokenizer, length=common["max_tokens"], stop=problem.stop)
    curve, started, evaluating, generating = Curve(), 0.0, 0.0, 0.0

    def evaluate(done: int) -> None:
        nonlocal evaluating
        began = time.perf_counter()
        curve.answers.append(done)
        curve.seconds.append(round(began - started - evaluating, 1))
        texts = greedy(problem.held_out["prompt"])
        curve.rewards.append([round(each, 4) for each in problem.reward(texts, problem.held_out["esplug_row"])])
        evaluating += time.perf_counter() - began

    def greedy(prompts: Sequence[str]) -> list[str]:
        copy_weights(trainer.model, answering)
        _, ids = answer(answering, prompts, sample=False)
        return list(tokenizer.batch_decode(ids, skip_special_tokens=True))

    def roll_out(prompts: list[str], _: Any) -> dict[str, Any]:
        copy_weights(trainer.model, answering)
        prompt_ids, completion_ids = answer(answering, prompts, sample=True)
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    def timed(generate: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal generating
            began = time.perf_counter()
            found = generate(*args, **named)
            generating += time.perf_counter() - began
            return found

        return call

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model,
            reward_funcs=problem.reward,
            args=GRPOConfig(
                output_dir=folder,
                learning_rate=settings["learning_rate"],
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=min(10, steps // 10),
                num_generations=settings["group"],
                per_device_train_batch_size=step,
                gradient_accumulation_steps=1,
                max_steps=steps,
                max_completion_length=common["max_tokens"],
                bf16=device != "cpu",
                use_cpu=device == "cpu",
                seed=seed,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                **(of_vllm(problem.stop, common.get("max_model_len")) if vllm else {}),
            ),
            train_dataset=problem.train,
            processing_class=tokenizer,
            peft_config=adapters(settings["rank"]) if "rank" in settings else None,
            rollout_func=None if vllm else timed(roll_out),
            callbacks=[_evaluate_between(evaluate, step, between)],
        )
        if vllm:
            engine = trainer.vllm_generation
            greedy = partial(greedy_of_vllm, engine, engine.sync_weights)  # evaluations do not count as generating
            engine.sync_weights, engine.generate = timed(engine.sync_weights), timed(engine.generate)
        started = time.perf_counter()
        try:
            evaluate(0)
            trainer.train()
        finally:
            problem.close()
    peak = torch.cuda.max_memory_allocated() if device != "cpu" else 1024 * resource.getrusage(resource.RUSAGE_SELF)[2]
    rewards = [each["reward"] for each in trainer.state.log_history if "reward" in each]
    return {
        "settings": dict(settings),
        "answers": curve.answers,
        "rewards": curve.rewards,
        "train": [round(each, 4) for each in rewards],
        "clock": curve.seconds,
        "generating": round(generating, 1),
        "peak_mb": round(peak / 1e6),
    }


def answers(
    tokenizer: Any, model: Any, prompts: Sequence[str], *, length: int, stop: Sequence[str], sample: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of prompts, and of an answer to each of at most ``length`` tokens."""
    import torch

    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    prompt_ids = tokenizer(list(prompts))["input_ids"]
    found: list[list[int]] = []
    for first in range(0, len(prompts), _AT_ONCE):
        batch = tokenizer(list(prompts[first : first + _AT_ONCE]), return_tensors="pt", padding=True).to(model.device)
        with torch.no_grad():
            ids = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=length,
                do_sample=sample,
                **({"temperature": 1.0, "top_p": 1.0, "top_k": 0} if sample else {}),
                pad_token_id=tokenizer.pad_token_id,
                stopping_criteria=[_ended(tokenizer, stop, batch["input_ids"].shape[1])],
            )
        found += [cut(row, ends, stop, tokenizer.decode) for row in ids[:, batch["input_ids"].shape[1] :].tolist()]
    return prompt_ids, found


def of_vllm(stop: Sequence[str], max_model_len: int | None) -> dict[str, Any]:
    """Return the settings of GRPOConfig with which vLLM answers, in the same process. ``cut`` ends answers alike."""
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.05,  # several runs share the GPU; so much of it has to be free
        "vllm_max_model_length": max_model_len,
        "generation_kwargs": {"stop": list(stop), "include_stop_str_in_output": True},
    }


def greedy_of_vllm(engine: Any, sync_weights: Callable[[], None], prompts: Sequence[str]) -> list[str]:
    """Return the answers of TRL's engine (``VLLMGeneration``) after giving it the trained weights."""
    from vllm import SamplingParams

    sync_weights()
    sampling = SamplingParams(temperature=0, max_tokens=engine.max_completion_length, **engine.generation_kwargs)
    return [each.outputs[0].text for each in engine.llm.generate(list(prompts), sampling, use_tqdm=False)]


def copy_weights(trained: Any, answering: Any) -> None:
    """Copy weights to the same model without adapters: theirs are added to the weights that they belong to."""
    import torch

    prefix = "base_model.model." if hasattr(trained, "peft_config") else ""
    modules = dict(trained.named_modules())
    with torch.no_grad():
        for name, target in answering.named_parameters():
            place, _, kind = name.rpartition(".")
            module = modules[prefix + place]
            weights = getattr(getattr(module, "base_layer", module), kind)
            if kind == "weight" and hasattr(module, "get_delta_weight"):
                weights = weights + module.get_delta_weight("default")
            target.copy_(weights)


def adapters(rank: int) -> Any:
    """Return the configuration of LoRA adapters of all linear layers."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def cut(ids: Sequence[int], ends: set[int], stop: Sequence[str], decode: Callable[..., str]) -> list[int]:
    """Return an answer up to the token that completes a stop text or ends it, whichever is first; never empty."""
    for count in range(1, len(ids) + 1):
        text = decode(ids[:count], skip_special_tokens=True)
        if ids[count - 1] in ends or any(each in text for each in stop):
            return list(ids[:count])
    return list(ids)


def _ended(tokenizer: Any, stop: Sequence[str], prompt: int) -> Callable[..., Any]:
    """Return a criterion by which transformers ends answers, which follow a ``prompt`` of so many tokens."""
    import torch

    def ended(ids: Any, _: Any) -> Any:
        if (ids.shape[1] - prompt) % _LOOK_EVERY:
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        tails = tokenizer.batch_decode(ids[:, prompt:][:, -_STOP_TOKENS - _LOOK_EVERY :])
        return torch.tensor([any(each in tail for each in stop) for tail in tails], device=ids.device)

    return ended


def of_task(study: Study, seed: int) -> Problem:
    """Return the rows and rewards of the study's task."""
    from esplug.interop.trl import TRLTask

    assert study.task
    with tempfile.TemporaryDirectory() as folder:
        data = study.datasets(Path(folder))
        task = TRLTask(study.task, study.task_options, eval_limit=study.common.get("eval_limit"), seed=seed, **data)
        train, (held_out,) = task.train_dataset(), task.eval_datasets().values()
    return Problem(train, held_out, task.reward, task.config.stop, task.close)


def sums() -> Problem:
    """Return the rows and rewards of ``tiny_sums.py``."""
    from datasets import Dataset

    train, held_out = tiny_sums.split(1024, 0), tiny_sums.split(500, 1)
    targets = [*train[1], *held_out[1]]

    def reward(completions: Sequence[str], esplug_row: Sequence[int], **_: Any) -> list[float]:
        return [tiny_sums.reward(text, targets[row]) for text, row in zip(completions, esplug_row, strict=True)]

    def rows(questions: Sequence[str], first: int) -> Any:
        return Dataset.from_dict({"prompt": questions, "esplug_row": range(first, first + len(questions))})

    return Problem(rows(train[0], 0), rows(held_out[0], len(train[0])), reward, ["."])


def _evaluate_between(evaluate: Callable[[int], None], step: int, between: int) -> Any:
    from transformers import TrainerCallback

    class Evaluate(TrainerCallback):
        """Evaluates after every ``between`` answers, and at the end."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            done = state.global_step * step
            if done // between > (done - step) // between or state.global_step == state.max_steps:
                evaluate(done)

    return Evaluate()
