"""Training on 1, 2, 4 and 8 GPUs: whole iterations, exactness, and an engine that is killed."""

import functools
import itertools
import json
import statistics
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.gpu.device import GPU, Row
from benchmarks.gpu.runs import FEW_GRAPHS, FULL_LENGTH, model_folder, vllm_arguments
from benchmarks.iteration.run import UNENDED, Ours, last_letters
from benchmarks.shared.reference import BenchmarkEngine
from esplug.checkpoints.replayed_model import write_model
from esplug.checkpoints.seed_log import read
from esplug.checkpoints.seed_log_format import FILE_NAME
from esplug.config import make_config
from esplug.data.batches import load_batch_source
from esplug.plugins.task import Task

_GPUS = max(1, torch.cuda.device_count())
#: What the table shows: one engine on each of more and more GPUs, one engine on many, an engine that is killed.
ARMS = ("engines", "shared", "killed")


def measure(name: str, options: Namespace) -> Iterator[Row]:
    """Time iterations on more and more GPUs, one engine each; then one engine on many; then lose an engine."""
    with model_folder(name, options.kept) as model:
        alone: dict[tuple[int, int], float] = {}

        def row(sizes: tuple[int, int], arm: str, gpus: int, settings: Mapping[str, Any], *, kill: bool = False) -> Row:
            found = {"model": name} | _row(model, options, *sizes, arm, settings, kill=kill)
            if gpus == 1:
                alone[sizes] = found["answers/s"]
            return found | {"efficiency": found["answers/s"] / alone[sizes] / gpus if sizes in alone else ""}

        counts = [count for count in options.counts or (1, 2, 4, 8) if count <= _GPUS]
        for sizes in itertools.product(options.prompts, options.tokens):
            for count in counts if "engines" in options.scaling else ():
                yield row(sizes, f"{count} engines", count, {"n_vllm_engines": count})
        sizes = min(options.prompts), min(options.tokens)
        for count in counts if "shared" in options.scaling else ():
            if count > 1:
                shared = {"n_vllm_engines": 1, "n_gpu_per_vllm_engine": count}
                yield row(sizes, f"1 engine on {count} GPUs", count, shared)
        if _GPUS > 1 and "killed" in options.scaling:
            yield row(sizes, "one is killed", _GPUS, {"n_vllm_engines": _GPUS}, kill=True)


def _row(
    model: Path,
    options: Namespace,
    prompts: int,
    tokens: int,
    arm: str,
    settings: Mapping[str, Any],
    *,
    kill: bool = False,
) -> Row:
    task = Task.load("countdown", {"level": "easy", "shots": 0})
    with tempfile.TemporaryDirectory() as folder, vllm_arguments(SAMPLING=FULL_LENGTH, LLM=FEW_GRAPHS):
        config = make_config(
            {"task": "countdown", "model_name": str(model), "max_model_len": 1024},
            {"use_gpus": ",".join(map(str, range(_GPUS))) if GPU else "none"},
            {"population_size": options.members, "batch_size": prompts, "max_tokens": tokens},
            {"n_iterations": 1 + options.iterations, "output_directory": folder, "logging": "jsonl"},
            UNENDED | settings,
            defaults=task.defaults(),
        )
        rows = load_batch_source(task, None, config.batch_size, config.seed)
        sent = _loopback()
        killed: list[int] = []
        if kill:
            threading.Thread(target=_kill_one, args=(Path(folder), killed), daemon=True).start()
        template = functools.partial(last_letters, task.template, options.letters or 0)
        trainer = Ours.from_config(config, _letters, template, rows, {})
        result = trainer.fit()
        sent = _loopback() - sent
        if kill and not killed:
            raise SystemExit(f"{arm}: no engine was killed in {options.iterations} iterations; give more --iterations")
        log = result.run_dir / FILE_NAME
        replayed = write_model(read(log), log, model, Path(folder) / "replayed")
        lines = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    times = [line["time/iteration"] for line in lines if "time/iteration" in line]
    taken = max(times[1:]) if kill else statistics.median(times[1:])
    measured = [line for line in lines if "time/iteration" in line][1:]
    return {
        "N": options.members,
        "prompts": prompts,
        "tokens": tokens,
        "arm": arm,
        "iteration, s": taken,
        "each after the first": " ".join(f"{time:.3g}" for time in times[1:]),
        "answers/s": options.members * prompts / taken,
        "switch": statistics.median(line["time/switch"] for line in measured),
        "update": statistics.median(line["time/update"] for line in measured),
        "before and after, s": result.seconds - sum(times),
        "loopback, MB an iteration": sent / 1e6 / len(times),
        "checksum": f"{result.checksum:016x}",
        "replayed on a CPU": "equal" if replayed.checksum == result.checksum else "DIFFERENT",
    }


def _letters(output: str, target: Any) -> float:
    """Reward an answer by its text, so that random models get an update, too."""
    return sum(map(ord, output[:200])) % 997 / 997


def _loopback() -> int:
    return sum(net.bytes_sent for name, net in psutil.net_io_counters(pernic=True).items() if name == "lo")


def _kill_one(folder: Path, killed: list[int]) -> None:
    """Kill the process of one of this run's engines in the second iteration, and add its ID to ``killed``."""
    while not any(file.stat().st_size for file in folder.glob("**/metrics.jsonl")):
        time.sleep(0.05)
    time.sleep(0.5)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may have ended
            if f"ray::{BenchmarkEngine.__name__}" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                return
