"""Checks that the GPU's kernels compute the same as the CPU's, bit for bit."""

import random
import sys
from typing import Any

import torch

from benchmarks.gpu.device import DEVICE, GPU, SIGMA
from benchmarks.shared import random_model
from esplug.noise.full_rank import tensor_key
from esplug.noise.kernels import cpu, cuda
from esplug.noise.kernels.streamed import Streamed
from esplug.weights import master as weights_module
from esplug.weights.master import MasterWeights

TYPES = (torch.float32, torch.bfloat16, torch.float16)
_UNDEFINED = (float("nan"), float("inf"), -float("inf"))


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    bits = torch.int32 if left.dtype == torch.float32 else torch.int16
    return torch.equal(left.cpu().contiguous().view(bits), right.cpu().contiguous().view(bits))


def check_blocks(cases: int) -> None:
    """Perturb, update and sum random blocks, whose first elements lie anywhere up to 2**43, on both devices."""
    draw, most = random.Random(1), (40, 300) if GPU else (4, 60)  # the interpreter runs row by row, slowly
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
    """Update random blocks of matrices with low-rank noise of random ranks on both devices."""
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


def check_layers(cases: int) -> None:
    """Compare the rows of a batch with adapters with each row alone, and counts of undefined logits with the CPU's."""
    from esplug.vllm_worker import adapter_kernel, logits_kernel
    from esplug.vllm_worker.undefined_logits import count_undefined

    draw = random.Random(3)
    for case in range(cases):  # with few sizes, because each is compiled
        drawn = torch.Generator().manual_seed(case)
        rows, inputs, rank = draw.choice([1, 7, 480] if GPU else [1, 4]), draw.choice([80, 4864]), draw.choice([1, 8])
        outputs = [draw.choice([48, 130, 2304]) for _ in range(draw.randint(1, 3))]
        dtype, slots = draw.choice(TYPES), torch.randint(-1, 3, (rows,), generator=drawn).to(DEVICE)
        shapes = [(rows, inputs), (rows, sum(outputs)), *((3, 1, rank, inputs) for _ in outputs)]
        shapes += [(3, 1, each, rank) for each in outputs]
        x, y, *factors = (torch.randn(shape, generator=drawn).to(DEVICE, dtype) for shape in shapes)
        a, b, together = factors[: len(outputs)], factors[len(outputs) :], y.clone()
        adapter_kernel.add(together, x, slots, a, b)
        for row in range(rows):
            adapter_kernel.add(y[row : row + 1], x[row : row + 1], slots[row:], a, b)
        apart = same(y, together)
        together[torch.rand(together.shape, generator=drawn).to(DEVICE) < 1 / y.numel()] = draw.choice(_UNDEFINED)
        counts = [torch.zeros(4, dtype=torch.int64, device=where) for where in (DEVICE, "cpu")]
        logits_kernel.count_undefined(together, slots, counts[0])
        count_undefined(together.cpu(), slots.cpu(), counts[1])
        if not (apart and torch.equal(counts[0].cpu(), counts[1])):
            sys.exit(f"layer {case}: {rows} x {inputs} to {outputs}, rank {rank}, {dtype}: not the same")


def check_model(name: str, iterations: int, threads: int, **how: Any) -> None:
    """Update a whole model on both devices, and compare checksums and a member's weights after every iteration."""
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
    layout = there.fused({tensor: (tensor,) for tensor, _ in made})
    model = {tensor: torch.empty(there.shapes[tensor], dtype=torch.bfloat16, device=DEVICE) for tensor, _ in made}
    for iteration in range(iterations):
        seeds = [100 * iteration + member for member in range(8 if GPU else 2)]
        for master in (here, there):
            master.update(seeds, [1e-4 * (member - 3) for member in range(len(seeds))])
        if here.checksum() != there.checksum():
            sys.exit(f"{name}, {how}: other checksums after {iteration + 1} updates")
        ours, theirs = (dict(master.perturbed(iteration, SIGMA, torch.bfloat16)) for master in (here, there))
        written = dict(there.perturbed(iteration, SIGMA, torch.bfloat16, layout, model))  # as an engine does
        if not all(same(ours[tensor], each[tensor]) for each in (theirs, written) for tensor, _ in made):
            sys.exit(f"{name}, {how}: other weights of a member after {iteration + 1} updates")
