"""Timings and checks of the rollout loop, next to vLLM's own path in the same engine."""

import os
import random
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.device import GPU, Row, wait
from benchmarks.gpu.engines import LocalEngine
from benchmarks.shared import random_model
from esplug.rollout.requests import Request, Rules

_PROMPT = 200 if GPU else 20  # tokens
_SHORT = 8  # tokens of the answers that are subtracted, so that only decoding is left


def decoding(name: str, model: Path, options: Namespace) -> list[Row]:
    """Time decoding alone: long answers less short ones to the same prompts. All answers have their longest length."""
    rows = []
    tokens, count = max(options.tokens), max(options.prompts)
    dtype = "bfloat16" if GPU else "float32"
    there = LocalEngine(model, dtype, 0.5, plain=True, rollout="device")
    prompts = _prompts(count, random_model.MODELS[name][5])
    context = _PROMPT + tokens / 2
    bound = (_weight_bytes(there) + count * context * _token_bytes(name)) / bandwidth() if GPU else 0.0
    arms: dict[str, Callable[[int], object]] = {
        "loop on the device": lambda length: _by_loop(there, prompts, length),
        "vLLM alone": lambda length: by_vllm(there, prompts, length),
    }

    def measure(arm: str) -> Row:
        took = {length: _seconds(arms[arm], length) for length in (_SHORT, tokens)}
        step = (took[tokens] - took[_SHORT]) / (tokens - _SHORT)
        sizes = {"model": name, "sequences": count, "prompt": _PROMPT, "tokens": tokens}
        figures = {"a step, ms": 1e3 * step, "tokens/s, decoding": count / step, "all, s": took[tokens]}
        return {"arm": arm} | sizes | figures | {"bound, ms": 1e3 * bound, "of the bound": bound / step}

    for arm in arms:
        arms[arm](tokens)  # compiles, and captures graphs
    for _ in range(2 if GPU else 1):
        rows += [measure(arm) for arm in arms]
    there.lighten()
    arms["vLLM, esplug's patches"] = arms["vLLM alone"]
    return [*rows, measure("vLLM, esplug's patches")]


def check(model: Path, dtype: str, invariant: bool, count: int, tokens: int) -> str:
    """Compare the loop's greedy answers with vLLM's, and vLLM's with its own in smaller batches.

    ``invariant`` has vLLM's kernels give each row the same bits in any batch.
    """
    if invariant:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    there = LocalEngine(model, dtype, 0.3, rollout="device")
    chosen = random.Random(5)
    texts = [
        f"Count from {chosen.randrange(100)} to {chosen.randrange(100, 200)}. " * (1 + i % 7) for i in range(count)
    ]
    prompts = [there.llm.get_tokenizer()(text)["input_ids"] for text in texts]
    loop, vllm = _by_loop(there, prompts, tokens), by_vllm(there, prompts, tokens)
    few = [answer for first in range(0, count, 5) for answer in by_vllm(there, prompts[first : first + 5], tokens)]
    again = _by_loop(there, prompts[::-1], tokens)[::-1]
    alike = {
        "the loop and vLLM": sum(a == b for a, b in zip(loop, vllm, strict=True)),
        "vLLM and vLLM, 5 at a time": sum(a == b for a, b in zip(vllm, few, strict=True)),
        "the loop and the loop, in reverse": sum(a == b for a, b in zip(loop, again, strict=True)),
    }
    shares = ", ".join(f"{name} {equal}/{count}" for name, equal in alike.items())
    regrets = ", ".join(
        f"{name} {_regret(model, prompts, found):.2g}" for name, found in (("loop", loop), ("vLLM", vllm))
    )
    return (
        f"rollout, {model.name}, {dtype}{', batch-invariant kernels' if invariant else ''}, greedy answers of {tokens} "
        f"tokens: equal: {shares}; mean loss of a token's "
        f"log-probability to transformers' best in float32: {regrets}"
    )


def _regret(model: Path, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> float:
    """Return how much less probable than the best ``transformers`` finds the answers' tokens, in log-probability."""
    from transformers import AutoModelForCausalLM

    device = "cuda" if GPU else "cpu"
    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device)
    lost, tokens = 0.0, 0
    with torch.inference_mode():
        for prompt, answer in zip(prompts[:40], answers, strict=False):
            logits = dense(torch.tensor([prompt + answer], device=device)).logits[0, len(prompt) - 1 : -1]
            own = logits.gather(1, torch.tensor(answer, device=device)[:, None]).squeeze(1)
            lost += float((logits.max(dim=-1).values - own).sum())
            tokens += len(answer)
    return lost / tokens


def _prompts(count: int, vocabulary: int) -> list[list[int]]:
    chosen = random.Random(1)
    return [[chosen.randrange(vocabulary) for _ in range(_PROMPT)] for _ in range(count)]


def _by_loop(there: LocalEngine, prompts: Sequence[list[int]], tokens: int) -> list[list[int]]:
    there.llm.reset_prefix_cache()
    requests = [Request(prompt) for prompt in prompts]
    answers, _ = there.llm.collective_rpc("es_roll_out", args=(requests, Rules(tokens)))[0]
    return [answer.tokens for answer in answers]


def by_vllm(there: LocalEngine, prompts: Sequence[list[int]], tokens: int) -> list[list[int]]:
    from vllm import SamplingParams, TokensPrompt

    there.llm.reset_prefix_cache()
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    outputs = there.llm.generate([TokensPrompt(prompt_token_ids=each) for each in prompts], sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def _seconds(work: Callable[[int], object], length: int) -> float:
    wait()
    started = time.perf_counter()
    work(length)
    wait()
    return time.perf_counter() - started


def _weight_bytes(there: LocalEngine) -> int:
    """Return the bytes of the weights that a step reads. Of untied input embeddings, it reads few rows."""
    sizes = there.ask(lambda worker: {name: p.nbytes for name, p in worker.get_model().named_parameters()})
    untied = any("lm_head" in name for name in sizes)
    return sum(size for name, size in sizes.items() if not (untied and "embed_tokens" in name))


def _token_bytes(name: str) -> int:
    """Return the bytes of one token's keys and values in bfloat16."""
    hidden, _, layers, heads, key_heads, *_ = random_model.MODELS[name]
    return 2 * 2 * layers * key_heads * (hidden // heads)


def bandwidth() -> float:
    """Return the bytes per second that a copy within the GPU's memory reads and writes."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**31 / min(_seconds(lambda _: target.copy_(source), 0) for _ in range(10))


def step(name: str, model: Path, options: Namespace) -> list[Row]:
    """Return where the time of answers goes, by kernel, in microseconds for each of their tokens."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    there = LocalEngine(model, "bfloat16" if GPU else "float32", 0.5, rollout="device")
    tokens, prompts = min(options.tokens), _prompts(max(options.prompts), random_model.MODELS[name][5])
    _by_loop(there, prompts, tokens)
    with record(activities=[ProfilerActivity.CUDA if GPU else ProfilerActivity.CPU]) as recorded:
        _by_loop(there, prompts, tokens)
    took = {
        each.key: (each.self_device_time_total if GPU else each.self_cpu_time_total, each.count)
        for each in recorded.key_averages()
    }
    longest = sorted(took, key=lambda key: -took[key][0])[:30]
    return [
        {"model": name, "kernel": key[:90], "calls": took[key][1] / tokens, "us": took[key][0] / tokens}
        for key in longest
    ]
