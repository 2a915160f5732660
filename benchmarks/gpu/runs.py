"""Timings of whole training iterations on a GPU, and runs on Countdown."""

import json
import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import DEVICE, GPU, SMALL_MODEL, Row, release
from benchmarks.gpu.engines import apart
from benchmarks.iteration.run import UNENDED, Arm, Case, Ours, run
from benchmarks.shared import random_model
from benchmarks.shared.reference import PlainPool, ReferenceTrainer

#: Sampling settings that give every answer the maximum length.
FULL_LENGTH = {"ignore_eos": True, "stop": [], "stop_token_ids": []}
_ONE = {"n_vllm_engines": 1}
#: Captures CUDA graphs only for the tables' batch sizes, so that an engine starts in half the time.
FEW_GRAPHS = {"compilation_config": {"cudagraph_capture_sizes": [1, 8, 32, 64, 128, 200, 256, 400, 480, 512]}}


def _sharing(engines: int, **settings: Any) -> dict[str, Any]:
    return {"n_vllm_engines_per_gpu": engines, "n_vllm_engines": engines, **settings}


class _Plain(Ours):
    pool = PlainPool


ARMS = {
    arm.name: arm
    for arm in (
        Arm("reference", ReferenceTrainer, _ONE | {"master_dtype": "model"}),
        Arm("esplug", Ours, UNENDED | _ONE),
        Arm("vLLM's path", Ours, UNENDED | _ONE | {"rollout": "vllm"}),
        Arm("vLLM's bookkeeping", _Plain, UNENDED | _ONE | {"rollout": "vllm"}),
        Arm("rank 1", Ours, UNENDED | _ONE | {"perturbation": "low-rank"}),
        *(Arm(f"{n} engines", Ours, UNENDED | _sharing(n)) for n in (2, 4)),
        *(Arm(f"{n} engines, rank 1", Ours, UNENDED | _sharing(n, perturbation="low-rank")) for n in (2, 4)),
    )
}


@contextmanager
def vllm_arguments(**settings: dict[str, Any]) -> Iterator[None]:
    """Pass engines arguments of vLLM (``LLM``, ``SAMPLING``) for which esplug has no settings."""
    names = {f"ESPLUG_BENCHMARK_{name}": json.dumps(value) for name, value in settings.items()}
    os.environ.update(names)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)


@contextmanager
def model_folder(name: str, kept: Path | None) -> Iterator[Path]:
    """Yield the folder of the small model, or of one with random weights, which is written unless ``kept`` has it."""
    if name == SMALL_MODEL.name:
        yield SMALL_MODEL
        return
    with tempfile.TemporaryDirectory() as folder:
        model = (kept or Path(folder)) / name
        if not model.exists():
            random_model.write(name, model, DEVICE)
            release()  # otherwise an engine finds too little memory and keeps the master in the host's
        yield model


def _run_options(model: Path, options: Namespace, prompts: int, tokens: int) -> Namespace:
    how = Namespace(model=model, gpus="0" if GPU else "none", members=options.members, prompts=prompts)
    vars(how).update(tokens=tokens, iterations=options.iterations, letters=options.letters)
    return how


def iterations(name: str, options: Namespace) -> Iterator[Row]:
    """Time whole iterations with every arm, and vLLM alone on the same prompts."""
    with model_folder(name, options.kept) as model:
        for prompts in options.prompts:
            for tokens in options.tokens:
                how = _run_options(model, options, prompts, tokens)
                if "vLLM" in options.arms:
                    with vllm_arguments(LLM=FEW_GRAPHS):
                        rate = apart(vllm_alone, model, prompts, tokens)
                    yield {"model": name, "arm": "vLLM alone", "prompts": prompts, "tokens": tokens} | _arm_figures(
                        0, rate
                    )
                for arm in (ARMS[each] for each in options.arms if each in ARMS):
                    with vllm_arguments(SAMPLING=FULL_LENGTH, LLM=FEW_GRAPHS):
                        times = run(Case(0, ()), arm, how)
                    row = {"model": name, "arm": arm.name, "prompts": prompts, "tokens": tokens}
                    row["letters"] = options.letters or "all"
                    yield row | _arm_figures(options.members * prompts, times["train/tokens_per_second"], times)


def _arm_figures(answers: int, tokens_a_second: float, times: dict[str, float] | None = None) -> Row:
    """Return an arm's figures. Seconds are means over its engines."""
    if times is None:
        blank = dict.fromkeys(("iteration, s", "answers/s", "switch", "generate", "update", "generating"), "")
        return {**blank, "tokens/s": tokens_a_second}
    whole, generating = times["time/iteration"], times["time/engine_generate"]
    return {
        "iteration, s": whole,
        "answers/s": answers / whole,
        "switch": times["time/switch"],
        "generate": generating,
        "update": times["time/update"],
        "generating": f"{100 * generating / whole:.1f}%",
        "tokens/s": tokens_a_second,
    }


def vllm_alone(model: Path, prompts: int, tokens: int) -> float:
    """Return the tokens per second that vLLM generates from the same prompts without esplug."""
    from esplug.data.batches import load_batch_source
    from esplug.plugins.task import Task

    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # this process may have used the GPU
    from vllm import LLM, SamplingParams

    cpu = {} if GPU else {"enforce_eager": True, "kv_cache_memory_bytes": 2**26}
    extra = json.loads(os.environ.get("ESPLUG_BENCHMARK_LLM", "{}")) if GPU else {}
    llm = LLM(model=str(model), max_model_len=1024, seed=0, **cpu, **extra)
    task = Task.load("countdown", {"level": "easy", "shots": 0})
    questions, _ = next(iter(load_batch_source(task, None, prompts, 42)))
    asked = [task.template(question) for question in questions]
    asked = [text if isinstance(text, str) else "\n".join(part["content"] for part in text) for text in asked]
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    taken = 0.0
    for attempt in range(4):  # the first warms up
        llm.reset_prefix_cache()  # as a switch to other weights does
        started = time.perf_counter()
        llm.generate(asked, sampling, use_tqdm=False)
        taken += time.perf_counter() - started if attempt else 0.0
    llm.llm_engine.engine_core.shutdown()  # otherwise this process would wait for it at exit
    return 3 * len(asked) * tokens / taken


def batches(name: str, options: Namespace) -> Iterator[Row]:
    """Time iterations with more and more members of rank 1 in a batch, against full rank one by one."""
    prompts, tokens, alone = min(options.prompts), min(options.tokens), 0.0
    with model_folder(name, options.kept) as model:
        for members in (0, *options.batches):
            low = {"perturbation": "low-rank", "members_per_batch": members}
            arm = Arm("rank 1", Ours, UNENDED | _ONE | low) if members else ARMS["esplug"]
            with vllm_arguments(SAMPLING=FULL_LENGTH, LLM=FEW_GRAPHS):
                times = run(Case(0, ()), arm, _run_options(model, options, prompts, tokens))
            rate = options.members * prompts / times["time/iteration"]
            alone = alone or rate
            together = str(members) if members else "full rank, one by one"
            row = {"model": name, "prompts": prompts, "tokens": tokens, "members in a batch": together}
            yield row | {"answers/s": rate, "ratio": rate / alone, "generate, s": times["time/engine_generate"]}


def countdown(kind: str, options: Namespace) -> tuple[Row, list[Row]]:
    """Train SmolLM2-135M-Instruct with one kind of noise. Returns the outcome and the held-out curve."""
    from esplug.config import make_config
    from esplug.data.batches import load_batch_source, load_eval_splits
    from esplug.plugins.task import Task
    from esplug.runs.compare import compare_evaluations
    from esplug.trainer import EvolutionStrategiesTrainer

    with tempfile.TemporaryDirectory() as folder:
        task = Task.load("countdown", {"level": "easy", "shots": 1})
        config = make_config(
            {"task": "countdown", "model_name": str(SMALL_MODEL), "recipe": "fast", "perturbation": kind},
            {"population_size": options.members, "batch_size": options.puzzles, "n_iterations": options.learn},
            {"max_tokens": 40, "max_model_len": 1024, "use_gpus": "0" if GPU else "none"},
            _sharing(options.engines),
            {"sigma": 0.001 if kind == "full" else 0.002, "eval_freq": 5, "eval_limit": 500 if GPU else 8},
            {"output_directory": folder, "logging": "jsonl"},
            defaults=task.defaults(),
        )
        rows = load_batch_source(task, None, config.batch_size, config.seed)
        splits = load_eval_splits(task, None, config.eval_limit)
        trainer = EvolutionStrategiesTrainer.from_config(config, task.reward, task.template, rows, splits)
        result = trainer.fit()
        lines = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    trained = [line["time/iteration"] for line in lines if "time/iteration" in line]
    first, last = result.evaluations[0], result.evaluations[-1]
    (change,) = compare_evaluations(first, last)
    outcome = {
        "perturbation": kind,
        "iterations": options.learn,
        "seconds": result.seconds,
        "an iteration": sum(trained) / len(trained),
        "before": _interval(first.splits[0].figures["pass@1"]),
        "after": _interval(last.splits[0].figures["pass@1"]),
        "change": _interval(change.changes["pass@1"].difference),
        "checksum": f"{result.checksum:016x}",
    }
    return outcome, [_point(kind, each) for each in result.evaluations]


def _interval(figure: Any) -> str:
    return f"{figure.mean:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _point(kind: str, evaluation: Any) -> Row:
    figures = evaluation.splits[0].figures
    shown = {name: _interval(figures[name]) for name in ("pass@1", "reward") if name in figures}
    return {"perturbation": kind, "iteration": evaluation.iteration, **shown}
