"""Noise on a GPU: is it the CPU's, bit for bit, and what does it cost next to copying and to torch.randn?

    python benchmarks/gpu.py                 # on the GPU that is there
    python benchmarks/gpu.py --quick

First random blocks of tensors are perturbed, updated and summed on the GPU and on the CPU, and a whole model is moved
for some iterations on both. Then come the times, each the median of several, for models of random weights: a member's
weights from a float32 master to bfloat16, next to a copy of as many bytes in the GPU's memory and to tensor-by-tensor
``torch.randn``, and an update. Without a GPU, Triton's interpreter runs the kernels, on tiny shapes: only the checks
mean something then.
"""

import argparse
import functools
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator

import torch
from machine import processor
from rich.console import Console
from rich.table import Table

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

from esplug import weights as weights_module  # noqa: E402
from esplug.kernels import cpu, cuda  # noqa: E402
from esplug.noise import tensor_key  # noqa: E402
from esplug.weights import MasterWeights  # noqa: E402

DEVICE = torch.device("cuda" if GPU else "cpu")
SIGMA, TYPES = 1e-3, (torch.float32, torch.bfloat16, torch.float16)
#: Hidden size, inner size, layers, columns of keys, vocabulary, and whether output embeddings are tied: of Qwen2.5.
MODELS = {
    "0.5B": (896, 4864, 24, 128, 151936, True),
    "1.5B": (1536, 8960, 28, 256, 151936, True),
    "7B": (3584, 18944, 28, 512, 152064, False),
    "tiny": (64, 96, 2, 32, 300, True),
}


def shapes(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield a model's tensors."""
    hidden, inner, layers, keys, vocabulary, tied = MODELS[name]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(layers):
        for part, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            yield f"model.layers.{layer}.{part}.weight", shape
    yield "model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (vocabulary, hidden)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    bits = torch.int32 if left.dtype == torch.float32 else torch.int16
    return torch.equal(left.cpu().contiguous().view(bits), right.cpu().contiguous().view(bits))


def check_blocks(cases: int) -> None:
    """Compare random blocks, whose first elements lie anywhere up to 2**43."""
    draw = random.Random(1)
    for case in range(cases):
        rows, columns = draw.choice([(1, draw.randint(1, 5000)), (draw.randint(1, 40), draw.randint(1, 300))])
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


def check_model(name: str, iterations: int, threads: int) -> None:
    """Move a whole model on both, and compare checksums and a member's weights after every iteration."""
    made = [(tensor, torch.randn(shape).mul_(0.02).bfloat16()) for tensor, shape in shapes(name)]
    here = MasterWeights(made, threads=threads)
    if not GPU:
        weights_module.kernels_for = lambda _: cuda
    there = MasterWeights(made, device=DEVICE)
    for iteration in range(iterations):
        seeds = [100 * iteration + member for member in range(8)]
        for master in (here, there):
            master.update(seeds, [1e-4 * (member - 3) for member in range(8)])
        if here.checksum() != there.checksum():
            sys.exit(f"{name}: other checksums after {iteration + 1} updates")
        members = (dict(master.perturbed(iteration, SIGMA, torch.bfloat16)) for master in (here, there))
        ours, theirs = members
        if not all(same(ours[tensor], theirs[tensor]) for tensor, _ in made):
            sys.exit(f"{name}: other weights of a member after {iteration + 1} updates")


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


def measure(name: str, members: int, repeats: int) -> list[str]:
    """Return a row of the table."""
    copied = copying(3 * sum(map(math.prod, dict(shapes(name)).values())), repeats)  # as many bytes as a switch
    made = ((tensor, torch.randn(shape, device=DEVICE).mul_(0.02).bfloat16()) for tensor, shape in shapes(name))
    master = MasterWeights(made, device=DEVICE)
    elements = master.nbytes // 4
    model = {name: torch.empty_like(master[name], dtype=torch.bfloat16) for name in master.names}
    layout = master.fused({name: (name,) for name in master.names})
    generator = torch.Generator(DEVICE)
    seeds, factors = list(range(members)), [1e-6] * members

    def switch() -> None:
        for _ in master.perturbed(1, SIGMA, torch.bfloat16, layout, model):
            pass

    def add_and_subtract() -> None:
        for scale in (SIGMA, -SIGMA):
            for tensor in model.values():
                generator.manual_seed(1)
                noise = torch.randn(tensor.shape, dtype=tensor.dtype, device=DEVICE, generator=generator)
                tensor.add_(noise, alpha=scale)

    def randn_update() -> None:
        for tensor in model.values():
            total = torch.zeros_like(tensor)
            for seed in seeds:
                generator.manual_seed(seed)
                noise = torch.randn(tensor.shape, dtype=tensor.dtype, device=DEVICE, generator=generator)
                total.add_(noise, alpha=1e-6)
            tensor.add_(total)

    times = [seconds(work, repeats) for work in (switch, add_and_subtract)]
    times += [seconds(lambda: master.update(seeds, factors), 2), seconds(randn_update, 2)]
    times.append(seconds(master.checksum, 2))
    ratios = times[0] / copied, times[1] / times[0], times[3] / times[2]
    return [
        f"{name}, {elements / 1e9:.2f}e9",
        *(f"{1e3 * each:.2f}" for each in (copied, times[0])),
        f"{ratios[0]:.2f}",
        f"{1e3 * times[1]:.2f}",
        f"{ratios[1]:.1f}",
        *(f"{1e3 * each:.1f}" for each in times[2:4]),
        f"{ratios[2]:.1f}",
        f"{1e3 * times[4]:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer checks, and no 7B")
    parser.add_argument("--members", type=int, default=30, help="in an update")
    parser.add_argument("--cases", type=int, help="random blocks to check  [default: 10,000; quick 500; no GPU 100]")
    options = parser.parse_args()
    options.cases = options.cases or ((500 if options.quick else 10_000) if GPU else 100)
    names = ["0.5B", "1.5B", "7B"][: 2 if options.quick else 3] if GPU else ["tiny"]
    where = torch.cuda.get_device_name() if GPU else f"no GPU: Triton's interpreter on {processor()}"
    print(f"{where}; {platform.platform()}, python {platform.python_version()}, torch {torch.__version__}")
    check_blocks(options.cases)
    check_model("0.5B" if GPU else "tiny", 5, len(os.sched_getaffinity(0)))
    print(f"{options.cases:,} random blocks and a model over 5 iterations: the same as on the CPU, bit for bit\n")
    columns = ("model, weights", "copy, ms", "switch, ms", "of copy", "add and subtract, ms", "ratio")
    table = Table(*columns, f"update N={options.members}, ms", "torch.randn, ms", "ratio", "checksum, ms", box=None)
    for name in names:
        table.add_row(*measure(name, options.members if GPU else 2, 5 if GPU else 1))
        if GPU:
            torch.cuda.empty_cache()
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
