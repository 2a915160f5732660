"""Timings of the kernels, and of switches, updates and checksums made of them, next to lower bounds.

Two bounds apply to a kernel: a memory copy of its bytes, and its rounds of Philox in a kernel that does nothing else.
``of bound`` is the larger of these times divided by the measured time.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from benchmarks.gpu.device import DEVICE, GPU, SIGMA, Row, release, seconds
from benchmarks.shared import random_model
from esplug.noise import full_rank as noise
from esplug.noise.kernels import cuda
from esplug.weights.master import MasterWeights

_LANES, _LOOPS = 256, 200 if GPU else 1


@triton.jit
def _rounds(out, loops, LANES: tl.constexpr, ROUNDS: tl.constexpr, M0: tl.constexpr, M1: tl.constexpr):
    """Compute rounds of Philox and nothing else."""
    a = (tl.program_id(0) * LANES + tl.arange(0, LANES)).to(tl.uint32)
    b, c, d = a + 1, a + 2, a + 3
    for _ in range(loops):
        for _round in tl.static_range(ROUNDS):
            p, q = a.to(tl.uint64) * M0, c.to(tl.uint64) * M1
            a, b = (q >> 32).to(tl.uint32) ^ b ^ 5, q.to(tl.uint32)
            c, d = (p >> 32).to(tl.uint32) ^ d ^ 7, p.to(tl.uint32)
    tl.store(out + tl.program_id(0), tl.sum((a ^ b ^ c ^ d).to(tl.int32, bitcast=True)))


def rounds_a_second(repeats: int) -> float:
    programs = 132 * 64 if GPU else 2
    out = torch.empty(programs, dtype=torch.int32, device=DEVICE)
    constants = {"ROUNDS": noise.ROUNDS, "M0": noise.MULTIPLIERS[0], "M1": noise.MULTIPLIERS[1]}
    taken = seconds(lambda: _rounds[(programs,)](out, _LOOPS, LANES=_LANES, num_warps=2, **constants), repeats)
    return programs * _LANES * _LOOPS * noise.ROUNDS / taken


def copying(nbytes: int, repeats: int) -> float:
    """Return the seconds of a memory copy that reads and writes ``nbytes`` in total."""
    source = torch.empty(nbytes // 2, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    taken = seconds(functools.partial(target.copy_, source), repeats)
    del source, target
    release()
    return taken


def made(name: str, **how: Any) -> MasterWeights:
    return MasterWeights(random_model.tensors(name, DEVICE), device=DEVICE, **how)


def switching(master: MasterWeights) -> Callable[[], object]:
    """Return a function that writes a member's weights into a model."""
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
    return [seconds(switching(master), repeats), seconds(update, repeats), seconds(master.checksum, repeats)]


def randn_times(name: str, members: int, repeats: int) -> list[float]:
    """Return the seconds of adding and subtracting ``torch.randn``, and of an update with it."""
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

    return [seconds(add_and_subtract, repeats), seconds(update, repeats)]


def alone(elements: int, repeats: int) -> float:
    """Return the seconds of the perturbing kernel alone, on one tensor of so many weights."""
    master = torch.zeros(elements, device=DEVICE)
    out = torch.empty(elements, dtype=torch.bfloat16, device=DEVICE)
    return seconds(lambda: cuda.perturb(master, out, 0, 1, SIGMA), repeats)


def measure(name: str, members: int) -> Row:
    """Return a row of the table. Its last two columns have the master in host memory."""
    repeats = 5 if GPU else 1
    elements = sum(torch.Size(shape).numel() for _, shape in random_model.shapes(name))
    copied, rate = copying(6 * elements, repeats), rounds_a_second(repeats)
    kernel = alone(elements, repeats)
    release()
    times = []
    for find in (
        functools.partial(our_times, name, members, repeats),
        functools.partial(randn_times, name, members, repeats),
        functools.partial(our_times, name, members, repeats, low_rank=1),
        functools.partial(our_times, name, members, repeats, low_rank=16),
        functools.partial(our_times, name, members, repeats, in_host=GPU),
    ):
        times.append(find())
        release()
    ours, randn, rank_1, rank_16, in_host = times
    made_noise = noise.ROUNDS * elements / 4 / rate
    return {
        "model, weights": f"{name}, {elements / 1e9:.2f}e9",
        "copy, ms": 1e3 * copied,
        "kernel": 1e3 * kernel,
        "of copy": kernel / copied,
        "of bound": max(copied, made_noise) / kernel,
        "switch": 1e3 * ours[0],
        "randn, twice": 1e3 * randn[0],
        "ratio": randn[0] / ours[0],
        f"update N={members}": 1e3 * ours[1],
        "of bound ": max(8 / 6 * copied, members * made_noise) / ours[1],
        "torch.randn": 1e3 * randn[1],
        "ratio ": randn[1] / ours[1],
        "checksum": 1e3 * ours[2],
        "rank 1": 1e3 * rank_1[1],
        "rank 16": 1e3 * rank_16[1],
        "host: switch": 1e3 * in_host[0],
        "update": 1e3 * in_host[1],
    }
