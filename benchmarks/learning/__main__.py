r"""Learning benchmark: compares the reference's settings, esplug's, and esplug's options at equal numbers of answers.

    python -m benchmarks.learning                 # make the missing runs, then print the tables
    python -m benchmarks.learning --print         # print the tables of the finished runs
    python -m benchmarks.learning --study sums    # only the tiny model
    python -m benchmarks.learning --gpus 0 1      # several runs on each of these GPUs

Each run trains one arm with one seed, on one CPU core or on a GPU. Its held-out rewards become one line of
``results/STUDY.jsonl`` beside this file, so an interrupted study continues where it stopped. Study ``countdown`` trains
SmolLM2-135M-Instruct on one-shot Countdown, ``arithmetic`` on sums and differences of the math task, ``families`` on
family relationships of reasoning-gym. Studies ``sums`` and ``sums-again`` train a tiny model (``tiny_sums.py``) on
differences. All arms of a study but GRPO's see the same prompts in the same order and decode greedily.
``benchmarks/shared/reference.py`` holds the arithmetic of the reference arms.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.learning.report import append, compare, report, results_of
from benchmarks.learning.studies import STUDIES, SUMS, Study, check_arms

SEEDS = (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, action="append", help="repeat for more  [default: all]")
    parser.add_argument("--arm", action="append", help="run only this arm; repeat for more")
    parser.add_argument("--gpus", nargs="+", default=[], help="indices of GPUs  [default: CPU]", metavar="GPU")
    parser.add_argument("--per-gpu", type=int, default=6, help="concurrent runs per GPU  [default: 6]")
    parser.add_argument("--hours", type=float, default=3.0, help="start no new run after this time  [default: 3]")
    parser.add_argument("--print", action="store_true", help="print the tables without running anything")
    parser.add_argument("--compare", nargs=3, metavar=("STUDY", "ARM", "ARM"), help="print how far one arm is ahead")
    parser.add_argument(
        "--run",
        nargs=4,
        metavar=("STUDY", "ARM", "SEED", "GPU"),
        help="train one arm with one seed; GPU is an index or none",
    )
    arguments = parser.parse_args()
    if arguments.run:
        name, arm, seed, gpu = arguments.run
        check_arms(parser, name, [arm])
        return append(name, run(name, arm, int(seed), gpu))
    if arguments.compare:
        check_arms(parser, arguments.compare[0], arguments.compare[1:])
        return compare(*arguments.compare)
    for name in arguments.study or STUDIES:
        check_arms(parser, name, arguments.arm or ())
    for name in arguments.study or STUDIES:
        if not arguments.print:
            places = places_for(arguments.gpus, arguments.per_gpu)
            make_missing(name, arguments.arm, places, time.monotonic() + 3600 * arguments.hours)
        report(name)


def places_for(gpus: Sequence[str], per_gpu: int) -> list[tuple[str, str]]:
    """Return a place for each concurrent run: its CPU cores in ``taskset`` syntax, and a GPU or ``none``."""
    cores = sorted(os.sched_getaffinity(0))
    wanted = [gpu for _ in range(per_gpu) for gpu in gpus] or ["none"] * len(cores)
    each = max(1, len(cores) // len(wanted))
    return [(",".join(map(str, cores[k * each : (k + 1) * each] or cores)), gpu) for k, gpu in enumerate(wanted)]


def make_missing(name: str, only: Sequence[str] | None, free: list[tuple[str, str]], deadline: float) -> None:
    """Make a study's missing runs, one at a time in each free place."""
    from benchmarks.learning import tiny_sums

    if not STUDIES[name].task and not SUMS.exists():
        print(f"training {SUMS}", flush=True)
        tiny_sums.make(SUMS)
    finished = {(each["arm"], each["seed"]) for each in results_of(name)}
    todo = [
        (arm, seed)
        for seed in SEEDS
        for arm in STUDIES[name].arms
        if (arm, seed) not in finished and (not only or arm in only)
    ]
    running: dict[subprocess.Popen[bytes], tuple[str, str]] = {}
    failed: list[str] = []
    while todo or running:
        while todo and free and time.monotonic() < deadline:
            (arm, seed), (cores, gpu) = todo.pop(0), free.pop(0)
            run = [sys.executable, "-m", "benchmarks.learning", "--run", name, arm, str(seed), gpu]
            command = ["taskset", "-c", cores, *run]
            print(f"{time.strftime('%H:%M')} {name}: {arm}, seed {seed}", flush=True)
            running[subprocess.Popen(command, stdout=subprocess.DEVNULL)] = cores, gpu
        for process in [each for each in running if each.poll() is not None]:
            free.append(running.pop(process))
            if process.returncode:
                failed.append(" ".join(map(str, process.args)))
                print(f"a run failed: {failed[-1]}", flush=True)
        if not running and time.monotonic() >= deadline:
            break
        time.sleep(1)
    if failed:
        sys.exit(f"{len(failed)} runs failed; the first: {failed[0]}")


def run(name: str, arm: str, seed: int, gpu: str, iterations: int | None = None) -> dict[str, Any]:
    """Train one arm with one seed, for other than the study's number of iterations if given. Returns its result."""
    from benchmarks.learning import grpo
    from esplug.runs.directory import environment

    study = STUDIES[name]
    if iterations:
        study = replace(study, common={**study.common, "n_iterations": iterations})
    started = time.perf_counter()
    settings = dict(study.arms[arm])
    if "grpo" in settings:
        found = {"pool": "GRPOTrainer"} | grpo.run(study, settings["grpo"], seed, gpu)
    else:
        found = evolve(study, settings, seed, gpu)
    seconds = round(time.perf_counter() - started)
    return {"study": name, "arm": arm, "seed": seed, **found, "seconds": seconds, "environment": environment()}


def evolve(study: Study, settings: dict[str, Any], seed: int, gpu: str) -> dict[str, Any]:
    """Train with esplug. Returns the result's fields."""
    from benchmarks.learning import tiny_sums
    from benchmarks.shared import reference
    from esplug.config import make_config
    from esplug.data.batches import Batches, load_batch_source, load_eval_splits
    from esplug.plugins.task import Task
    from esplug.trainer import EvolutionStrategiesTrainer

    pool = settings.pop("pool", "BenchmarkPool")
    with tempfile.TemporaryDirectory() as folder:
        own = {"seed": seed, "use_gpus": gpu, "n_vllm_engines": 1, "output_directory": folder, "logging": "jsonl"}
        if gpu != "none":  # several runs share the GPU
            from benchmarks.gpu.runs import FEW_GRAPHS

            own["gpu_memory_utilization"] = 0.05
            os.environ["ESPLUG_BENCHMARK_LLM"] = json.dumps({"kv_cache_memory_bytes": 2**31} | FEW_GRAPHS)
        if study.task:
            task = Task.load(study.task, study.task_options)
            own |= study.datasets(Path(folder))
            config = make_config({"task": study.task}, study.common, settings, own, defaults=task.defaults())
            rows = load_batch_source(task, config.train_dataset, config.batch_size, config.seed)
            splits = load_eval_splits(task, config.eval_dataset, config.eval_limit)
            functions = (task.reward, task.template)
        else:
            config = make_config({"task": "custom"}, study.common, settings, own)
            rows = Batches(*tiny_sums.split(1024, 0), config.batch_size, config.seed)
            splits = {"held out": [tiny_sums.split(500, 1)]}
            functions = (tiny_sums.reward, None)
        arm_trainer = type("Arm", (EvolutionStrategiesTrainer,), {"pool": getattr(reference, pool)})
        trainer = arm_trainer.from_config(config, *functions, rows, splits)
        outcome = trainer.fit()
        metrics = [json.loads(line) for line in (outcome.run_dir / "metrics.jsonl").read_text().splitlines()]
    answers = config.population_size * rows.batch_size
    took = [row["time/iteration"] for row in metrics if "time/iteration" in row]
    return {
        "pool": pool,
        "settings": config.model_dump(
            exclude={"output_directory", "model_name", "train_dataset", "eval_dataset"}, exclude_none=True
        ),
        "answers": [evaluation.iteration * answers for evaluation in outcome.evaluations],
        "rewards": [[_short(row[0].reward) for row in each.splits[0].rows] for each in outcome.evaluations],
        "train": [_short(row["train/reward/mean"]) for row in metrics if "train/reward/mean" in row],
        "clock": [round(sum(took[: evaluation.iteration]), 1) for evaluation in outcome.evaluations],
        "base": f"{trainer.history.base:016x}",
        "checksum": f"{outcome.checksum:016x}",
    }


def _short(value: float) -> float:
    return int(value) if value == int(value) else round(value, 4)


if __name__ == "__main__":
    main()
