"""GPU benchmark: checks that the GPU's arithmetic equals the CPU's, bit for bit, and times everything on it.

    python -m benchmarks.gpu                 # everything, on the first GPU
    python -m benchmarks.gpu --quick         # five minutes: a model of 0.5B
    python -m benchmarks.gpu --only kernels  # or checks, families, adapters, engines, iterations, ...

It needs no network. The checks perturb, update and sum random blocks on the GPU and on the CPU. They update a whole
model for some iterations on both, with noise of full and of low rank and with the master on the GPU and in host memory.
They change each tensor alone and compare vLLM's log-probabilities with those of ``transformers``. The tables use models
with random weights in real shapes:

- memory: memory of a model, and the number of GPUs that an engine needs;
- families: tiny models of many architectures: how an engine writes their weights, and how far it is off
  ``transformers``;
- kernels: medians of perturbing from a float32 master to bfloat16 and of updates, next to a copy of as many bytes, to
  ``torch.randn`` tensor by tensor, and to a lower bound;
- adapters: cost of members' adapters in a step, with esplug's kernel, with vLLM's, and as matrix products;
- engines: a switch to another member through vLLM, written directly and by ``reload_weights``;
- iterations: training iterations against the reference's schedule, and vLLM alone;
- rollout: decoding alone, by the rollout loop and by vLLM, next to the time to read weights and KV cache once a step;
- attention: attention of a step of decoding, with esplug's kernel and with FlashAttention;
- step: the kernels of the rollout loop;
- batches: low-rank members in larger and larger batches, against full rank one by one;
- countdown: SmolLM2-135M-Instruct trained on one-shot puzzles, with noise of full and of low rank;
- scaling: training iterations on 1, 2, 4 and 8 GPUs.

Without a GPU, Triton's interpreter runs the kernels and all sizes are tiny. Then only the checks are meaningful.
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

PARTS = (
    *("checks", "families", "memory", "kernels", "adapters", "engines", "iterations"),
    *("attention", "rollout", "step", "batches", "countdown", "scaling"),
)
CACHED, SPARE = 100_000, 6  # tokens in the KV cache; GB of a GPU left for activations


def checks(options: Namespace) -> None:
    """Compare all arithmetic with the CPU's. Exits if anything differs."""
    from benchmarks.gpu import checks as gpu_checks
    from benchmarks.gpu import engines as gpu_engines
    from benchmarks.gpu import rollout as gpu_rollout

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
        "batch are the same as each alone, and undefined logits are counted as on the CPU "
        f"({time.perf_counter() - started:.0f} s)",
        flush=True,
    )
    if (SMALL_MODEL / "config.json").exists():
        print(gpu_engines.apart(gpu_engines.check, SMALL_MODEL, options.tensors), flush=True)
        print(gpu_engines.apart(gpu_engines.check_members, SMALL_MODEL), flush=True)
        kinds = [("bfloat16" if GPU else "float32", False)]
        kinds += [("bfloat16", True), ("float32", False)] if GPU and not options.quick else []
        for dtype, invariant in kinds:
            sizes = (60, 64) if GPU else (6, 8)
            print(gpu_engines.apart(gpu_rollout.check, SMALL_MODEL, dtype, invariant, *sizes), flush=True)


def families(names: list[str], options: Namespace) -> Iterator[Row]:
    """Yield how an engine writes the weights of each architecture, and its distance from ``transformers``."""
    from benchmarks.gpu import families as gpu_families

    yield from gpu_families.measure()


def memory(names: list[str], options: Namespace) -> Iterator[Row]:
    """Yield the memory of each model, from its shapes, and the number of GPUs per engine, a power of two."""
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
        with gpu_runs.model_folder(name, options.kept) as model, gpu_runs.vllm_arguments(LLM=gpu_runs.FEW_GRAPHS):
            yield gpu_engines.apart(gpu_engines.switches, name, model, 30 if GPU else 1)


def attention(names: list[str], options: Namespace) -> Iterator[Row]:
    from benchmarks.gpu import attention as gpu_attention

    for name in names:
        yield from gpu_attention.measure(name)
        release()


def rollout(names: list[str], options: Namespace) -> Iterator[Row]:
    yield from _by_model(names, options, "decoding")


def step(names: list[str], options: Namespace) -> Iterator[Row]:
    yield from _by_model(names, options, "step")


def _by_model(names: list[str], options: Namespace, what: str) -> Iterator[Row]:
    from benchmarks.gpu import engines as gpu_engines
    from benchmarks.gpu import rollout as gpu_rollout
    from benchmarks.gpu import runs as gpu_runs

    for name in names:
        with gpu_runs.model_folder(name, options.kept) as model:
            yield from gpu_engines.apart(getattr(gpu_rollout, what), name, model, options)


def iterations(names: list[str], options: Namespace) -> Iterator[Row]:
    from benchmarks.gpu import runs as gpu_runs

    for name in names:
        yield from gpu_runs.iterations(name, options)


def batches(names: list[str], options: Namespace) -> Iterator[Row]:
    from benchmarks.gpu import runs as gpu_runs

    for name in names:
        yield from gpu_runs.batches(name, options)


def scaling(names: list[str], options: Namespace) -> Iterator[Row]:
    from benchmarks.gpu import scaling as gpu_scaling

    for name in names:
        yield from gpu_scaling.measure(name, options)


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
    from benchmarks.gpu.runs import ARMS
    from benchmarks.gpu.scaling import ARMS as SCALING

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer checks, only 0.5B on one engine, no countdown")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="[default: all; quick without batches and countdown]")
    names = (*random_model.MODELS, SMALL_MODEL.name)
    parser.add_argument(
        "--models", nargs="+", choices=names, help="[default: 0.5B, 1.5B and 7B]; SmolLM2 only for runs"
    )
    parser.add_argument("--members", type=int, help="population size  [default: 30; no GPU 4]")
    parser.add_argument(
        "--prompts", type=int, nargs="+", help="prompts per iteration  [default: 32 and 200; quick 32; no GPU 2]"
    )
    parser.add_argument("--tokens", type=int, nargs="+", help="length of every answer  [default: 128; no GPU 4]")
    parser.add_argument(
        "--letters", type=int, help="last letters of each prompt of the iterations table  [default: all]"
    )
    parser.add_argument(
        "--iterations", type=int, help="measured iterations, after one warm-up  [default: 2]", default=2
    )
    parser.add_argument("--arms", nargs="+", help="arms of the iterations table  [default: all; quick three]")
    parser.add_argument("--scaling", nargs="+", choices=SCALING, default=SCALING, help="arms of the scaling table")
    parser.add_argument("--counts", type=int, nargs="+", help="numbers of GPUs of the scaling table  [default: all]")
    parser.add_argument("--batches", type=int, nargs="+", help="members in a batch  [default: 1, 2, 4, 8, 15 and 30]")
    parser.add_argument("--learn", type=int, help="iterations on Countdown  [default: 40; no GPU 1]")
    parser.add_argument("--puzzles", type=int, help="puzzles per iteration of Countdown  [default: 200; no GPU 4]")
    parser.add_argument(
        "--engines", type=int, help="engines that share the GPU for Countdown  [default: 4]", default=4 if GPU else 1
    )
    parser.add_argument("--kinds", nargs="+", choices=("full", "low-rank"), default=["full", "low-rank"])
    parser.add_argument("--cases", type=int, help="random blocks to check  [default: 10,000; quick 500; no GPU 100]")
    parser.add_argument("--tensors", type=int, help="tensors to change one by one  [default: all; no GPU 3]")
    parser.add_argument("--kept", type=Path, help="folder to keep the random models in, for later runs")
    parser.add_argument("--results", type=Path, help="folder to write the tables to, as JSON")
    options = parser.parse_args()
    many, quick = GPU and not options.quick, options.quick
    options.only = options.only or (PARTS[:7] if quick else PARTS)
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
    few = ["reference", "esplug", "rank 1"]
    options.arms = options.arms or (["vLLM", *ARMS] if many else few)
    return options


def main() -> None:
    options = arguments()
    print(machine(), flush=True)
    if "checks" in options.only:
        checks(options)
    titles = {
        families: "families: tiny random models; largest differences of log-probabilities",
        memory: f"memory, N={options.members}; {SPARE} GB of each GPU are left for activations",
        kernels: "kernels, ms",
        adapters: "adapters, ms of a step's layers",
        engines: "engines, medians",
        attention: "attention, microseconds of a layer",
        rollout: "rollout, decoding alone",
        step: "step, kernels for each token of the answers, prompts included",
        iterations: f"iterations, N={options.members}",
        batches: f"batches, N={options.members}",
        scaling: f"scaling, N={options.members}",
    }
    for part, title in titles.items():
        if part.__name__ in options.only:
            show(title, part(options.models, options), options.results)
    if "countdown" in options.only:
        countdown(options)


if __name__ == "__main__":
    main()
