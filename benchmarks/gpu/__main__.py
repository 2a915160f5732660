"""Is the GPU's arithmetic the CPU's, bit for bit, and how fast is everything on it? One command, without a network.

    python -m benchmarks.gpu                 # on the GPU that is there
    python -m benchmarks.gpu --quick         # in five minutes: a model of 0.5B
    python -m benchmarks.gpu --only kernels  # or checks, adapters, engines, iterations, batches, memory, countdown

First random blocks of tensors are perturbed, updated and summed on the GPU and on the CPU, and a whole model is moved
for some iterations on both, with noise of full and of low rank, its master on the GPU and in the host's memory; and
vLLM's log-probabilities are compared with ``transformers``' while each tensor is changed alone. Then come tables, for
models of random weights in real shapes:

- memory: what a model takes, and how many GPUs an engine then needs;
- kernels: medians of perturbing from a float32 master to bfloat16, and of updates, next to a copy of as many bytes in
  the GPU's memory, to tensor-by-tensor ``torch.randn``, and to what the GPU could do at best;
- adapters: what members' adapters cost in a step, by esplug's kernel, by vLLM's, and as matrix products;
- engines: a switch to another member through vLLM, by esplug's own way and by ``reload_weights``;
- iterations: whole ones of real training against the reference's schedule (``reference.py``), and vLLM by itself;
- batches: members of low rank in batches of more and more, against one after the other;
- countdown: the small real model trained on one-shot puzzles, with noise of full and of low rank.

Without a GPU, Triton's interpreter runs the kernels and everything is tiny: only the checks mean something then.
"""

import argparse
import os
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.device import GPU, SMALL_MODEL, Row, machine, release, show
from benchmarks.shared import random_model

PARTS = ("checks", "memory", "kernels", "adapters", "engines", "iterations", "batches", "countdown")
CACHED, SPARE = 100_000, 6  # tokens, and GB


def checks(options: Namespace) -> None:
    """Compare all arithmetic with the CPU's, and end if anything differs."""
    from benchmarks.gpu import checks as gpu_checks
    from benchmarks.gpu import engines as gpu_engines

    name, threads, started = "0.5B" if GPU else "tiny", len(os.sched_getaffinity(0)), time.perf_counter()
    gpu_checks.check_blocks(options.cases)
    gpu_checks.check_low_rank_blocks(options.cases // 5)
    layers = max(2, options.cases // 20)
    gpu_checks.check_layers(layers)
    ways: list[dict[str, Any]] = [{}, {"in_host": True, "low_rank": 1}, {"low_rank": 2}, {"in_host": True}]
    for how in ways[: 4 if GPU else 2]:
        gpu_checks.check_model(name, options.checked if not how else 1, threads, **how)
        release()
    print(
        f"{options.cases:,} random blocks, {options.cases // 5:,} with noise of low rank, and a model over "
        f"{options.checked} iterations: the same as on the CPU, bit for bit; {layers} layers with adapters: rows in a "
        "batch are the same as each alone, and undefined ones are counted as on the CPU "
        f"({time.perf_counter() - started:.0f} s)",
        flush=True,
    )
    if (SMALL_MODEL / "config.json").exists():
        print(gpu_engines.apart(gpu_engines.check, SMALL_MODEL, options.tensors), flush=True)
        print(gpu_engines.apart(gpu_engines.check_members, SMALL_MODEL), "\n", flush=True)


def memory(names: list[str], options: Namespace) -> Iterator[Row]:
    """Add up what models take, from their shapes alone, and how many GPUs an engine then needs, a power of two."""
    from esplug.noise import low_rank

    for name in names:
        sizes = dict(random_model.shapes(name))
        elements = sum(torch.Size(shape).numel() for shape in sizes.values())
        factors = sum(sum(shape) for tensor, shape in sizes.items() if low_rank.is_perturbed(tensor, shape))
        hidden, _, layers, heads, key_heads, *_ = random_model.MODELS[name]
        cache = 2 * 2 * layers * key_heads * (hidden // heads) * CACHED
        parts = [2 * elements, 4 * elements, 2 * options.members * factors, cache]
        served = parts[0] + parts[2] + cache
        titles = ("weights, GB", "master", "adapters, rank 1", f"KV cache, {CACHED:,} tokens")
        yield (
            {"model": name}
            | {title: f"{part / 1e9:.1f}" for title, part in zip(titles, parts, strict=True)}
            | {
                f"{size} GB GPUs, {where}": str(next(n for n in (1, 2, 4, 8, 16) if wanted / n <= (size - SPARE) * 1e9))
                for size in (80, 141)
                for where, wanted in (("master there", served + parts[1]), ("in the host", served))
            }
        )


def kernels(names: list[str], options: Namespace) -> Iterator[Row]:
    from benchmarks.gpu import kernels as gpu_kernels

    for name in names:
        yield gpu_kernels.measure(name, options.members if GPU else 2)
        release()


def adapters(names: list[str], options: Namespace) -> Iterator[Row]:
    from benchmarks.gpu import adapters as gpu_adapters

    for name in names:
        yield from gpu_adapters.measure(name)
        release()


def engines(names: list[str], options: Namespace) -> Iterator[Row]:
    from benchmarks.gpu import engines as gpu_engines
    from benchmarks.gpu import runs as gpu_runs

    for name in names:
        with gpu_runs.written(name, options.kept) as model, gpu_runs.told(LLM=gpu_runs.FEW_GRAPHS):
            yield gpu_engines.apart(gpu_engines.switches, name, model, 30 if GPU else 1)


def iterations(names: list[str], options: Namespace) -> Iterator[Row]:
    from benchmarks.gpu import runs as gpu_runs

    for name in names:
        yield from gpu_runs.iterations(name, options)


def batches(names: list[str], options: Namespace) -> Iterator[Row]:
    from benchmarks.gpu import runs as gpu_runs

    for name in names:
        yield from gpu_runs.batches(name, options)


def countdown(options: Namespace) -> None:
    from benchmarks.gpu import runs as gpu_runs

    if (SMALL_MODEL / "config.json").exists():
        outcomes, curves = [], []
        for kind in options.kinds:
            outcome, curve = gpu_runs.countdown(kind, options)
            outcomes.append(outcome)
            curves += curve
        title = f", {SMALL_MODEL.name}, N={options.members}, {options.puzzles} puzzles, {options.engines} engines"
        show(f"countdown{title}", outcomes, options.results)
        show(f"countdown curve{title}", curves, options.results)


def arguments() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer checks, only 0.5B on one engine, and no countdown")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="[default: all; quick without batches and countdown]")
    parser.add_argument("--models", nargs="+", choices=random_model.MODELS, help="[default: 0.5B, 1.5B and 7B]")
    parser.add_argument("--members", type=int, help="of a population  [default: 30; no GPU 4]")
    parser.add_argument("--prompts", type=int, nargs="+", help="[default: 32 and 200; quick 32; no GPU 2]")
    parser.add_argument("--tokens", type=int, nargs="+", help="of every answer  [default: 128; no GPU 4]")
    parser.add_argument("--iterations", type=int, help="to measure, after one that warms up  [default: 2]", default=2)
    parser.add_argument("--arms", nargs="+", help="of iterations  [default: all; quick three]")
    parser.add_argument("--batches", type=int, nargs="+", help="members in a batch  [default: 1, 2, 4, 8, 15 and 30]")
    parser.add_argument("--learn", type=int, help="iterations on Countdown  [default: 40; no GPU 1]")
    parser.add_argument("--puzzles", type=int, help="of an iteration of Countdown  [default: 200; no GPU 4]")
    parser.add_argument("--engines", type=int, help="on the GPU for Countdown  [default: 4]", default=4 if GPU else 1)
    parser.add_argument("--kinds", nargs="+", choices=("full", "low-rank"), default=["full", "low-rank"])
    parser.add_argument("--cases", type=int, help="random blocks to check  [default: 10,000; quick 500; no GPU 100]")
    parser.add_argument("--tensors", type=int, help="to change one by one  [default: all; no GPU 3]")
    parser.add_argument("--kept", type=Path, help="folder for the models of random weights, so that they are made once")
    parser.add_argument("--results", type=Path, help="folder for the tables as JSON")
    options = parser.parse_args()
    many, quick = GPU and not options.quick, options.quick
    options.only = options.only or (PARTS[:6] if quick else PARTS)
    options.cases = options.cases or (10_000 if many else 500 if GPU else 100)
    options.members = options.members or (30 if GPU else 4)
    options.prompts = options.prompts or ([32, 200] if many else [32] if GPU else [2])
    options.tokens = options.tokens or [128 if GPU else 4]
    options.batches = options.batches or ([1, 2, 4, 8, 15, 30] if GPU else [1, 4])
    options.checked = 5 if GPU else 1  # iterations
    options.learn = options.learn or (40 if GPU else 1)
    options.puzzles = options.puzzles or (200 if GPU else 4)
    options.tensors = options.tensors or (None if many else 3)
    options.models = options.models or ((["0.5B"] if quick else ["0.5B", "1.5B", "7B"]) if GPU else ["tiny"])
    from benchmarks.gpu.runs import ARMS

    few = ["reference", "esplug", "rank 1"]
    options.arms = options.arms or (["vLLM", *ARMS] if many else few)
    return options


def main() -> None:
    options = arguments()
    print(machine(), flush=True)
    if "checks" in options.only:
        checks(options)
    titles = {
        memory: f"memory, N={options.members}; {SPARE} GB of each GPU are left for activations",
        kernels: "kernels, ms",
        adapters: "adapters, ms of a step's layers",
        engines: "engines, medians",
        iterations: f"iterations, N={options.members}",
        batches: f"batches, N={options.members}",
    }
    for part, title in titles.items():
        if part.__name__ in options.only:
            show(title, part(options.models, options), options.results)
    if "countdown" in options.only:
        countdown(options)


if __name__ == "__main__":
    main()
