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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--elements", type=int, default=134_500_000, help="approximate number of weights  [default: 134,500,000]"
    )
    parser.add_argument("--members", type=int, default=30, help="members of an update  [default: 30]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = {name: torch.randn(shape).mul_(0.02) for name, shape in shapes(arguments.elements)}
    weights = MasterWeights(model.items(), threads=arguments.threads)
    elements = sum(tensor.numel() for tensor in model.values())
    copies = {name: tensor.clone() for name, tensor in model.items()}
    rounded = {name: tensor.bfloat16() for name, tensor in model.items()}
    seeds, coefficients = list(range(arguments.members)), [1e-6] * arguments.members

    def copy() -> None:
        for name, tensor in model.items():
            copies[name].copy_(tensor)

    def round_only() -> None:
        for name, tensor in model.items():
            rounded[name].copy_(tensor)

    def perturb() -> None:
        for _ in weights.perturbed(1, SIGMA, torch.bfloat16):
            pass

    def torch_perturb() -> None:
        generator = torch.Generator().manual_seed(1)
        for tensor in model.values():
            (torch.randn(tensor.shape, generator=generator).mul_(SIGMA).add_(tensor)).bfloat16()

    def torch_add_then_subtract() -> None:
        for sign in (SIGMA, -SIGMA):
            generator = torch.Generator().manual_seed(1)
            for tensor in copies.values():
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=sign)

    def torch_update() -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for tensor in copies.values():
            total = torch.zeros_like(tensor)
            for generator, coefficient in zip(generators, coefficients, strict=True):
                total.add_(torch.randn(tensor.shape, generator=generator), alpha=coefficient)
            tensor.add_(total)

    few = min(2, arguments.repeats)
    table: list[tuple[str, Callable[[], object], int]] = [
        ("memory copy, float32 to float32", copy, arguments.repeats),
        ("torch rounding, float32 to bfloat16", round_only, arguments.repeats),
        ("esplug perturbed, float32 to new bfloat16", perturb, arguments.repeats),
        ("torch.randn * sigma + master, to new bfloat16", torch_perturb, few),
        ("torch.randn added, then subtracted, float32", torch_add_then_subtract, few),
        ("esplug checksum", weights.checksum, arguments.repeats),
        (f"esplug update, N={arguments.members}", lambda: weights.update(seeds, coefficients), few),
        (f"torch.randn update, N={arguments.members}", torch_update, 1),
    ]
    print(f"{processor()}, {os.cpu_count()} cores, {arguments.threads} thread(s), {platform.system()}")
    print(f"python {platform.python_version()}, torch {torch.__version__}, numba {numba.__version__}")
    print(f"{elements:,} elements in {len(model)} tensors; load average {os.getloadavg()[0]:.1f}\n")
    print(f"{'':48}{'seconds':>10}{'ns/element':>12}{'runs':>6}")
    for what, work, repeats in table:
        seconds = best(work, repeats)
        print(f"{what:48}{seconds:10.3f}{seconds / elements * 1e9:12.3f}{repeats:6}", flush=True)


if __name__ == "__main__":
    main()
