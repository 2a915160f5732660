"""What do the adapters of a batch of members cost in a step, by esplug's kernel, by vLLM's, and as matrix products?"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch

from benchmarks.gpu.device import DEVICE, GPU, Row, seconds
from benchmarks.gpu.kernels import copying
from benchmarks.shared import random_model

_CHECKED = 20  # rows
_BATCHES = ((32, 1), (480, 15), (480, 30)) if GPU else ((4, 2),)  # answers and members

Linear = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor], tuple[int, ...]]


def linears(name: str, rows: int, members: int, rank: int) -> list[Linear]:
    """Return outputs, inputs, factors and slices of all linear layers as vLLM has them; layers share their inputs."""
    hidden, inner, layers, heads, key_heads, *_ = random_model.MODELS[name]
    keys = key_heads * hidden // heads
    kinds = [(hidden, (hidden, keys, keys)), (hidden, (hidden,)), (hidden, (inner, inner)), (inner, (hidden,))]
    generator = torch.Generator(DEVICE).manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=DEVICE, generator=generator).bfloat16()

    ends = [(drawn(rows, sum(slices)), drawn(rows, inputs)) for inputs, slices in kinds]
    return [
        (
            *(y, x, [drawn(members, 1, rank, inputs) for _ in slices]),
            *([drawn(members, 1, outputs, rank).mul_(0.01) for outputs in slices], slices),
        )
        for _ in range(layers)
        for (y, x), (inputs, slices) in zip(ends, kinds, strict=True)
    ]


def ways(rows: int, members: int, rank: int) -> dict[str, Callable[..., object]]:
    """Return what vLLM would call, for a batch whose rows belong to the members in turn."""
    from vllm.config.lora import LoRAConfig
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU

    from esplug.vllm_worker.adapters_cpu import MaskedAdapters
    from esplug.vllm_worker.adapters_gpu import RowAdapters

    config = LoRAConfig(max_lora_rank=rank, max_loras=members, lora_dtype=torch.bfloat16)
    slots = tuple(1 + row % members for row in range(rows))
    mapping = LoRAMapping(slots, slots, is_prefill=False)
    kinds = {"esplug's kernel": RowAdapters, "vLLM's": PunicaWrapperGPU, "matrix products": MaskedAdapters}
    made = {}
    for title, kind in kinds.items():
        if GPU or title != "vLLM's":
            wrapper = kind(rows, rows, DEVICE, lora_config=config, max_loras=members)
            wrapper.update_metadata(mapping, list(range(1, members + 1)), members, 1000)
            made[title] = wrapper.add_lora_linear
    return made


def off(add: Callable[..., object], linear: Linear, members: int) -> float:
    """Return by how much the first rows are off their exact sums at most, in parts of the largest."""
    y, x, a, b, slices = linear
    ours, exact = y.clone(), y[:_CHECKED].double()
    add(ours, x, tuple(a), tuple(b), 1.0, slices)
    for row in range(len(exact)):
        slot = row % members
        parts = [
            up[slot, 0].double() @ (down[slot, 0].double() @ x[row].double()) for down, up in zip(a, b, strict=True)
        ]
        exact[row] += torch.cat(parts)
    return float((ours[: len(exact)].double() - exact).abs().max() / exact.abs().max())


def recorded(work: Callable[[], object]) -> Callable[[], object]:
    """Have a GPU do what was recorded from work, without Python, as vLLM has it do a step."""
    if not GPU:
        return work
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def step(add: Callable[..., object], layers: list[Linear]) -> None:
    for y, x, a, b, slices in layers:
        add(y, x, tuple(a), tuple(b), 1.0, slices)


def measure(name: str) -> Iterator[Row]:
    """Yield rows of the milliseconds that all layers of a step take, and of how far the first layer is off."""
    repeats = 5 if GPU else 1
    for (rows, members), rank in product(_BATCHES, (1, 8)):
        layers = linears(name, rows, members, rank)
        row: Row = {"model": name, "answers in a batch": str(rows), "members": str(members), "rank": str(rank)}
        wrong = {}
        for title, add in ways(rows, members, rank).items():
            wrong[f"off, {title}"] = f"{max(off(add, linear, members) for linear in layers[:4]):.1e}"
            row[title] = 1000 * seconds(recorded(partial(step, add, layers)), repeats)
        row["outputs, copied"] = 1000 * copying(2 * 2 * sum(y.numel() for y, *_ in layers), repeats)
        yield row | wrong
