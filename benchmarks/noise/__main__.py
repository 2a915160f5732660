"""Noise benchmark on a CPU: esplug's fused kernels against ``torch.randn`` and a memory copy.

    python -m benchmarks.noise --threads 1
    python -m benchmarks.noise --threads 2 --elements 20_000_000 --members 8

All arms work on the same tensors in one process. Each figure is the best of several runs after a warm-up; the table
shows how many, and slow arms have fewer. ``torch.randn`` with a generator uses one thread only. On a busy machine, set
``OMP_WAIT_POLICY=passive``: otherwise torch's threads spin, and its arms look far too slow.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator

import numba
import torch

from benchmarks.shared.machine import processor
from esplug.weights.master import MasterWeights

SIGMA = 1e-3
HIDDEN, KEYS, INNER = 576, 192, 1536  # of SmolLM2-135M, which has 134,500,000 elements in 272 tensors


def shapes(elements: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a Llama-like model of about ``elements`` weights."""
    rows = max(1, round(elements * 0.2105 / HIDDEN))
    yield "model.embed_tokens.weight", (rows, HIDDEN)
    left, layer = elements - rows * HIDDEN, 0
    block = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    size = sum(torch.Size(shape).numel() for shape in block.values())
    while left >= size / 2:
        for name, shape in block.items():
            yield f"model.layers.{layer}.{name}.weight", shape
        left, layer = left - size, layer + 1
    yield "model.norm.weight", (HIDDEN,)


def best(work: Callable[[], object], repeats: int) -> float:
    """Return the shortest time of ``repeats`` runs in seconds, after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


Arm = tuple[str, Callable[[], object], int]  # title, work, and how often to repeat it


def esplug_arms(model: dict[str, torch.Tensor], members: int, threads: int, repeats: int) -> list[Arm]:
    weights = MasterWeights(model.items(), threads=threads)
    seeds, coefficients = list(range(members)), [1e-6] * members

    def perturb() -> None:
        for _ in weights.perturbed(1, SIGMA, torch.bfloat16):
            pass

    return [
        ("esplug perturbed, float32 to new bfloat16", perturb, repeats),
        ("esplug checksum", weights.checksum, repeats),
        (f"esplug update, N={members}", lambda: weights.update(seeds, coefficients), min(2, repeats)),
    ]


def copy_arms(model: dict[str, torch.Tensor], repeats: int) -> list[Arm]:
    def copying(dtype: torch.dtype) -> Callable[[], object]:
        copies = {name: tensor.to(dtype, copy=True) for name, tensor in model.items()}
        return lambda: [copies[name].copy_(tensor) for name, tensor in model.items()]

    return [
        ("memory copy, float32 to float32", copying(torch.float32), repeats),
        ("torch rounding, float32 to bfloat16", copying(torch.bfloat16), repeats),
    ]


def torch_arms(model: dict[str, torch.Tensor], members: int, repeats: int) -> list[Arm]:
    copies = [tensor.clone() for tensor in model.values()]

    def perturb() -> None:
        generator = torch.Generator().manual_seed(1)
        for tensor in model.values():
            torch.randn(tensor.shape, generator=generator).mul_(SIGMA).add_(tensor).bfloat16()

    def add_then_subtract() -> None:
        for sign in (SIGMA, -SIGMA):
            generator = torch.Generator().manual_seed(1)
            for tensor in copies:
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=sign)

    def update() -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in range(members)]
        for tensor in copies:
            total = torch.zeros_like(tensor)
            for generator in generators:
                total.add_(torch.randn(tensor.shape, generator=generator), alpha=1e-6)
            tensor.add_(total)

    return [
        ("torch.randn * sigma + master, to new bfloat16", perturb, min(2, repeats)),
        ("torch.randn added, then subtracted, float32", add_then_subtract, min(2, repeats)),
        (f"torch.randn update, N={members}", update, 1),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=134_500_000, help="approximate weights  [default: 134,500,000]")
    parser.add_argument("--members", type=int, default=30, help="members of an update  [default: 30]")
    parser.add_argument("--threads", type=int, default=1, help="[default: 1]")
    parser.add_argument("--repeats", type=int, default=5, help="runs of the fast arms  [default: 5]")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model = {name: torch.randn(shape).mul_(0.02) for name, shape in shapes(options.elements)}
    elements = sum(tensor.numel() for tensor in model.values())
    arms = copy_arms(model, options.repeats)
    arms += esplug_arms(model, options.members, options.threads, options.repeats)
    arms += torch_arms(model, options.members, options.repeats)
    print(f"{processor()}, {os.cpu_count()} cores, {options.threads} thread(s), {platform.system()}")
    print(f"python {platform.python_version()}, torch {torch.__version__}, numba {numba.__version__}")
    print(f"{elements:,} elements in {len(model)} tensors; load average {os.getloadavg()[0]:.1f}\n")
    print(f"{'':48}{'seconds':>10}{'ns/element':>12}{'runs':>6}")
    for title, work, repeats in arms:
        seconds = best(work, repeats)
        print(f"{title:48}{seconds:10.3f}{seconds / elements * 1e9:12.3f}{repeats:6}", flush=True)


if __name__ == "__main__":
    main()
