r"""What does a generated answer teach? Reference settings, esplug's, and esplug's options, at equal numbers of answers.

    python -m benchmarks.learning                 # make the runs that are missing, two at a time, then print
    python -m benchmarks.learning --print         # print what there is
    python -m benchmarks.learning --study sums    # only the tiny model
    python -m benchmarks.learning --gpus 0 1      # several runs on each of these GPUs

Each run trains one arm with one seed, on one CPU core or on a GPU. Its held-out rewards become one line of
``results/STUDY.jsonl`` beside this file, so an interrupted study continues where it stopped. Study ``countdown`` trains
SmolLM2-135M-Instruct on few-shot Countdown; study ``sums`` trains a tiny model (``tiny_sums.py``) on differences. All
arms of a study see the same prompts in the same order and answer greedily. ``reference`` is the arithmetic of
``benchmarks/shared/reference.py``.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
SMALL = ROOT / "models" / "SmolLM2-135M-Instruct"
SUMS = ROOT / "models" / "tiny-sums"
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Study:
    """Runs to be compared: what all have in common, and what each arm changes."""

    common: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    mark: float  # held-out reward, of which the table says after how many answers it is reached
    shown: Sequence[int]  # numbers of answers at which the table shows it
    task_options: Mapping[str, Any] = field(default_factory=dict)


#: Arms by name; ``pool`` is the arithmetic, the rest are settings of a run.
REFERENCE = {"pool": "ReferenceMathsPool", "master_dtype": "model"}
MIRRORED = {"antithetic": True}
STUDIES = {
    "countdown": Study(
        common={
            "model_name": str(SMALL),
            "sigma": 0.001,
            "population_size": 16,
            "batch_size": 48,
            "max_tokens": 40,
            "max_model_len": 1024,
            "n_iterations": 24,
            "eval_freq": 2,
            "eval_limit": 500,
        },
        task_options={"level": "easy", "shots": 1},
        mark=0.4,
        shown=(0, 3072, 6144, 9216, 12288, 18432, 27648),
        arms={
            "reference": REFERENCE | {"n_iterations": 36},
            "paper": {"n_iterations": 36},
            "alpha x 3": {"alpha": 0.0015},
            "reference, alpha x 3": REFERENCE | {"alpha": 0.0015},
            "mirrored, alpha x 3": MIRRORED | {"alpha": 0.0015},
            "alpha x 6": {"alpha": 0.003},
            "48 members, alpha x 3": {"alpha": 0.0015, "population_size": 48, "batch_size": 16},
            "Gaussian noise, alpha x 3": {"pool": "GaussianPool", "alpha": 0.0015},
            "alpha x 6, cosine": {"alpha": 0.003, "alpha_schedule": "cosine"},
            "fast": {"alpha": 0.002, "alpha_schedule": "cosine"},
            "equal noise in equal shapes, alpha x 3": {"pool": "TiedPool", "alpha": 0.0015},
            "momentum 0.5, alpha x 3": {"alpha": 0.00075, "momentum": 0.5},
            "per prompt, alpha x 10": {"reward_shaping": "z-scores-per-prompt", "alpha": 0.005},
        },
    ),
    "sums": Study(
        common={
            "model_name": str(SUMS),
            "sigma": 0.002,
            "population_size": 16,
            "batch_size": 64,
            "max_tokens": 4,
            "stop": ["."],
            "n_iterations": 40,
            "eval_freq": 5,
        },
        mark=0.6,
        shown=(0, 5120, 10240, 20480, 30720, 40960),
        arms={
            "reference": REFERENCE,
            "reference, alpha x 2": REFERENCE | {"alpha": 0.002},
            "paper": {},
            "Gaussian noise": {"pool": "GaussianPool"},
            "alpha x 2": {"alpha": 0.002},
            "alpha x 3": {"alpha": 0.003},
            "alpha x 4": {"alpha": 0.004},
            "alpha x 4, cosine": {"alpha": 0.004, "alpha_schedule": "cosine"},
            "alpha x 6": {"alpha": 0.006},
            "alpha x 6, cosine": {"alpha": 0.006, "alpha_schedule": "cosine"},
            "reference, alpha x 4": REFERENCE | {"alpha": 0.004},
            "equal noise in equal shapes": {"pool": "TiedPool"},
            "equal noise in equal shapes, alpha x 2": {"pool": "TiedPool", "alpha": 0.002},
            "equal noise in equal shapes, alpha x 4, cosine": {
                "pool": "TiedPool",
                "alpha": 0.004,
                "alpha_schedule": "cosine",
            },
            "32 members, alpha x 2": {"alpha": 0.002, "population_size": 32, "batch_size": 32},
            "64 members, alpha x 3": {"alpha": 0.003, "population_size": 64, "batch_size": 16},
            "mirrored": MIRRORED,
            "per prompt": {"reward_shaping": "z-scores-per-prompt"},
            "per prompt, alpha x 10": {"reward_shaping": "z-scores-per-prompt", "alpha": 0.01},
            "ranks": {"reward_shaping": "centered-ranks"},
            "ranks, alpha x 7": {"reward_shaping": "centered-ranks", "alpha": 0.007},
            "sigma linear": {"sigma_schedule": "linear"},
            "sigma cosine": {"sigma_schedule": "cosine"},
            "alpha x 2, linear": {"alpha": 0.002, "alpha_schedule": "linear"},
            "alpha x 2, cosine": {"alpha": 0.002, "alpha_schedule": "cosine"},
            "momentum 0.5": {"alpha": 0.0005, "momentum": 0.5},
            "momentum 0.8": {"alpha": 0.0002, "momentum": 0.8},
            "momentum 0.5, alpha x 2": {"alpha": 0.001, "momentum": 0.5},
            "mirrored, alpha x 2": MIRRORED | {"alpha": 0.002},
            "mirrored, alpha x 3, cosine": MIRRORED | {"alpha": 0.003, "alpha_schedule": "cosine"},
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, action="append")
    parser.add_argument("--arm", action="append", help="only these arms")
    parser.add_argument("--gpus", nargs="+", default=[], help="run on these, of which each is given as an index")
    parser.add_argument("--per-gpu", type=int, default=6, help="runs at a time on each")
    parser.add_argument("--hours", type=float, default=3.0, help="start no run later than this")
    parser.add_argument("--print", action="store_true", help="only print what there is")
    parser.add_argument("--compare", nargs=3, metavar=("STUDY", "ARM", "ARM"), help="print by how much one is ahead")
    parser.add_argument("--run", nargs=4, metavar=("STUDY", "ARM", "SEED", "GPU"), help="make one run")
    arguments = parser.parse_args()
    if arguments.run:
        name, arm, seed, gpu = arguments.run
        return run(name, arm, int(seed), gpu)
    if arguments.compare:
        return compare(*arguments.compare)
    for name in arguments.study or STUDIES:
        if not arguments.print:
            places = places_for(arguments.gpus, arguments.per_gpu)
            make_missing(name, arguments.arm, places, time.monotonic() + 3600 * arguments.hours)
        report(name)


def places_for(gpus: Sequence[str], per_gpu: int) -> list[tuple[str, str]]:
    """Return where runs can be made: CPU cores, as ``taskset`` takes them, and a GPU or ``none``."""
    cores = sorted(os.sched_getaffinity(0))
    wanted = [gpu for _ in range(per_gpu) for gpu in gpus] or ["none"] * len(cores)
    each = max(1, len(cores) // len(wanted))
    return [(",".join(map(str, cores[k * each : (k + 1) * each] or cores)), gpu) for k, gpu in enumerate(wanted)]


def make_missing(name: str, only: Sequence[str] | None, free: list[tuple[str, str]], deadline: float) -> None:
    """Make a study's missing runs, one in each place at a time."""
    from benchmarks.learning import tiny_sums

    if unknown := set(only or ()) - set(STUDIES[name].arms):
        sys.exit(f"{name} has no arm {min(unknown)!r}: {', '.join(STUDIES[name].arms)}")
    if name == "sums" and not SUMS.exists():
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
                for other in running:
                    other.terminate()
                sys.exit(f"a run failed: {' '.join(map(str, process.args))}")
        if not running and time.monotonic() >= deadline:
            return
        time.sleep(1)


def results_of(study: str) -> list[dict[str, Any]]:
    """Read the finished runs of a study."""
    path = RESULTS / f"{study}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(study: str, result: Mapping[str, Any]) -> None:
    """Append a run to its study's file, which several runs may do at a time."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{study}.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(result, separators=(",", ":")) + "\n")


def run(name: str, arm: str, seed: int, gpu: str) -> None:
    """Train once and keep the held-out rewards."""
    from benchmarks.learning import tiny_sums
    from benchmarks.shared import reference
    from esplug.config.run_config import make_config
    from esplug.data.batches import Batches, load_batch_source, load_eval_splits
    from esplug.plugins.task import Task
    from esplug.runs.directory import environment
    from esplug.trainer import EvolutionStrategiesTrainer

    study = STUDIES[name]
    settings = dict(study.arms[arm])
    pool = settings.pop("pool", "BenchmarkPool")
    with tempfile.TemporaryDirectory() as folder:
        own = {"seed": seed, "use_gpus": gpu, "n_vllm_engines": 1, "output_directory": folder, "logging": "jsonl"}
        if gpu != "none":  # several engines share it
            own["gpu_memory_utilization"] = 0.05
            os.environ["ESPLUG_BENCHMARK_LLM"] = json.dumps({"kv_cache_memory_bytes": 2**31})
        if name == "countdown":
            task = Task.load("countdown", study.task_options)
            config = make_config({"task": "countdown"}, study.common, settings, own, defaults=task.defaults())
            rows = load_batch_source(task, None, config.batch_size, config.seed)
            splits = load_eval_splits(task, None, config.eval_limit)
            functions = (task.reward, task.template)
        else:
            config = make_config({"task": "custom"}, study.common, settings, own)
            rows = Batches(*tiny_sums.split(1024, 0), config.batch_size, config.seed)
            splits = {"held out": [tiny_sums.split(500, 1)]}
            functions = (tiny_sums.reward, None)
        arm_trainer = type("Arm", (EvolutionStrategiesTrainer,), {"pool": getattr(reference, pool)})
        trainer = arm_trainer.from_config(config, *functions, rows, splits)
        started = time.perf_counter()
        outcome = trainer.fit()
        metrics = [json.loads(line) for line in (outcome.run_dir / "metrics.jsonl").read_text().splitlines()]
    answers = config.population_size * rows.batch_size
    result = {
        "study": name,
        "arm": arm,
        "seed": seed,
        "pool": pool,
        "settings": config.model_dump(exclude={"output_directory", "model_name"}, exclude_none=True),
        "answers": [evaluation.iteration * answers for evaluation in outcome.evaluations],
        "rewards": [[_short(row[0].reward) for row in each.splits[0].rows] for each in outcome.evaluations],
        "train": [_short(row["train/reward/mean"]) for row in metrics if "train/reward/mean" in row],
        "base": f"{trainer.history.base:016x}",
        "checksum": f"{outcome.checksum:016x}",
        "seconds": round(time.perf_counter() - started),
        "environment": environment(),
    }
    keep(name, result)


def _short(value: float) -> float:
    return int(value) if value == int(value) else round(value, 4)


def report(name: str) -> None:
    """Print each arm's curve: the mean over seeds, and an interval over the questions, each the mean of its seeds."""
    from esplug.evaluation.statistics import mean_estimate

    print(f"\n{name}: held-out reward, mean [95% interval over questions, each the mean of its seeds]\n")
    study = STUDIES[name]
    columns = ["arm, answers", "runs", *(f"{count:,}" for count in study.shown), f"to {study.mark}"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for arm in study.arms:
        if found := curve(name, arm):
            cells = [str(mean_estimate(found[count])) if count in found else "" for count in study.shown]
            to_mark = reached([sum(row) / len(row) for row in found.values()], list(found), study.mark)
            print(f"| {arm} | {len(kept(name, arm))} | {' | '.join(cells)} | {to_mark} |")


def compare(name: str, first: str, second: str) -> None:
    """Print by how much one arm is ahead of another on the same questions, after as many answers."""
    from esplug.evaluation.statistics import paired_difference

    ours, other = curve(name, first), curve(name, second)
    print(f"\n{name}: {first} - {second}, mean [95% interval over questions, each the mean of its seeds]\n")
    for count in sorted(ours.keys() & other.keys()):
        print(f"| {count:,} | {paired_difference(other[count], ours[count])} |")


def kept(name: str, arm: str) -> list[dict[str, Any]]:
    return sorted((each for each in results_of(name) if each["arm"] == arm), key=lambda each: each["seed"])


def curve(name: str, arm: str) -> dict[int, list[float]]:
    """Return, after so many answers, the reward of each different question, the mean of the seeds.

    Of questions that were drawn several times, these values have the mean of all draws, and about it the variance that
    this mean has when different questions are drawn.
    """
    import numpy as np

    from benchmarks.learning import tiny_sums

    runs = kept(name, arm)
    if not runs:
        return {}
    evaluations = min(len(run["answers"]) for run in runs)  # a run may have been stopped
    rewards = np.array([run["rewards"][:evaluations] for run in runs]).mean(axis=0)  # evaluations x draws
    if name == "sums":
        questions, _ = tiny_sums.split(rewards.shape[1], 1)
        _, first, draws = np.unique(questions, return_index=True, return_counts=True)
        mean = rewards.mean(axis=1, keepdims=True)
        rewards = mean + (rewards[:, first] - mean) * draws / draws.mean()
    return dict(zip(runs[0]["answers"], rewards.tolist(), strict=False))


def reached(curve: Sequence[float], answers: Sequence[int], mark: float) -> str:
    """Say after how many answers a curve first passes a mark, between evaluations on a straight line."""
    for at in range(1, len(curve)):
        if curve[at] >= mark > curve[at - 1]:
            share = (mark - curve[at - 1]) / (curve[at] - curve[at - 1])
            return f"{answers[at - 1] + share * (answers[at] - answers[at - 1]):,.0f}"
    return "-"


if __name__ == "__main__":
    main()
