"""Timings of members' adapters in a step: esplug's kernel, vLLM's kernels, and matrix products."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch

from benchmarks.gpu.device import DEVICE, GPU, Row, seconds
from benchmarks.gpu.kernels import copying
from benchmarks.shared import random_model
from tests.helpers.adapters import exact_sums

_CHECKED = 20  # rows whose exact sums are computed
_BATCHES = ((32, 1), (480, 15), (480, 30)) if GPU else ((4, 2),)  # answers and members

Linear = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor], tuple[int, ...]]


def linears(name: str, rows: int, members: int, rank: int) -> list[Linear]:
    """Return outputs, inputs, factors and slices of a model's linear layers. All blocks share outputs and inputs."""
    kinds = random_model.linear_layers(name)
    _, _, blocks, *_ = random_model.MODELS[name]
    generator = torch.Generator(DEVICE).manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=DEVICE, generator=generator).bfloat16()

    ends = [(drawn(rows, sum(slices)), drawn(rows, inputs)) for inputs, slices in kinds]
    return [
        (
            *(y, x, [drawn(members, 1, rank, inputs) for _ in slices]),
            *([drawn(members, 1, outputs, rank).mul_(0.01) for outputs in slices], slices),
        )
        for _ in range(blocks)
        for (y, x), (inputs, slices) in zip(ends, kinds, strict=True)
    ]


def ways(rows: int, members: int, rank: int) -> dict[str, Callable[..., object]]:
    """Return the function of each way that vLLM would call, for a batch whose rows belong to the members in turn."""
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


def relative_error(add: Callable[..., object], linear: Linear, members: int) -> float:
    """Return the largest error of the first rows, relative to the largest exact sum."""
    y, x, a, b, slices = linear
    ours = y.clone()
    add(ours, x, tuple(a), tuple(b), 1.0, slices)
    exact = exact_sums(y[:_CHECKED], x[:_CHECKED], torch.arange(_CHECKED) % members, a, b)
    return float((ours[: len(exact)].double() - exact).abs().max() / exact.abs().max())


def recorded(work: Callable[[], object]) -> Callable[[], object]:
    """Return a function that replays the work as a CUDA graph, as vLLM runs a step; the work itself without a GPU."""
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
    """Yield rows: milliseconds of all layers in a step, and the largest error in the first block."""
    repeats = 5 if GPU else 1
    for (rows, members), rank in product(_BATCHES, (1, 8)):
        layers = linears(name, rows, members, rank)
        row: Row = {"model": name, "answers in a batch": str(rows), "members": str(members), "rank": str(rank)}
        errors = {}
        for title, add in ways(rows, members, rank).items():
            errors[f"off, {title}"] = f"{max(relative_error(add, linear, members) for linear in layers[:4]):.1e}"
            row[title] = 1000 * seconds(recorded(partial(step, add, layers)), repeats)
        row["outputs, copied"] = 1000 * copying(2 * 2 * sum(y.numel() for y, *_ in layers), repeats)
        yield row | errors
