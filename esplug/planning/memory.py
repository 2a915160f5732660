"""Memory plan: the memory that engines use on a machine or GPU, by the arithmetic that places a run's engines."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from esplug.checkpoints.base_model import weights_size
from esplug.checkpoints.safetensors_shards import max_element_bytes, read_shapes
from esplug.config import RunConfig
from esplug.planning.adapter_sizes import adapter_elements
from esplug.planning.placement import (
    CPU_ENGINE_OVERHEAD,
    CPU_KV_CACHE_MAX,
    CPU_MEMORY_SHARE,
    GPU_ACTIVATIONS,
    GpuFootprint,
    Plan,
    cpu_kv_cache_bytes,
    element_bytes,
    gpu_master_room,
)
from esplug.planning.shared_prefix import MIN_PREFIX_TOKENS
from esplug.weights.partition import TensorBlock

Place: TypeAlias = Literal["memory", "GPU"]

_CPU_ANSWERS = 256  # that vLLM decodes at a time, per process of an engine


@dataclass(frozen=True, slots=True)
class Item:
    """Something that an engine keeps: bytes in this machine's memory, or on each GPU that the engine spans."""

    what: str
    place: Place
    nbytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its name, and its total and free memory in bytes."""

    name: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory of the engines, if all are on one machine.

    Attributes:
        plan: number of engines, and their GPUs or cores.
        items: of one engine.
        share: of each GPU's memory that vLLM uses; on a CPU, of free memory that the engines use.
        free: memory of the machine, in bytes.
        gpu: the one with the least free memory among those that the engines would use; ``None`` on a CPU.
        master_room: bytes outside vLLM on that GPU for one engine's master weights; ``None`` on a CPU.
        kv_bytes_per_token: of the KV cache; ``None`` if the model's configuration does not say.
        longest: most tokens of prompt and answer together; ``None`` if unknown.
    """

    plan: Plan
    items: tuple[Item, ...]
    share: float
    free: int
    gpu: Gpu | None
    master_room: int | None
    kv_bytes_per_token: int | None
    longest: int | None

    def used(self, place: Place) -> int:
        """Return the bytes that all engines use of the machine's memory, or of one GPU that they share."""
        engines = self.plan.n_engines if place == "memory" else self.plan.engines_per_gpu
        return engines * sum(item.nbytes for item in self.items if item.place == place)

    def available(self, place: Place) -> int:
        """Return the free bytes of the machine's memory, or of a GPU."""
        return self.free if place == "memory" else self.gpu.free if self.gpu else 0

    @property
    def kv_cache(self) -> int:
        """Bytes of one engine's KV cache, on each of its GPUs."""
        return next(item.nbytes for item in self.items if item.what == "KV cache")

    @property
    def kv_tokens(self) -> int | None:
        """Tokens of prompts and answers that an engine's KV cache holds; ``None`` if unknown."""
        ranks = max(1, self.plan.gpus_per_engine)
        return ranks * self.kv_cache // self.kv_bytes_per_token if self.kv_bytes_per_token else None


def cpu_items(model: Path, config: RunConfig) -> tuple[Item, ...]:
    """Return the memory of one CPU engine besides its KV cache. Its sum decides how many engines a machine gets.

    Raises:
        UserError: the weights are damaged.
    """
    weights = element_bytes(config.dtype) * weights_size(model)[1]
    items = [
        Item("weights", "memory", weights),
        Item("weights, packed", "memory", weights),
        Item("master", "memory", master_bytes(model, config.master_dtype)),
        Item("Python, torch, vLLM", "memory", CPU_ENGINE_OVERHEAD),
    ]
    if config.low_rank:
        nbytes = 4 * adapter_elements(model, config.low_rank, config.members_at_once(1))
        items.append(Item("adapters", "memory", nbytes))
    return tuple(items)


def plan_memory(model: Path, config: RunConfig, plan: Plan, free: int, gpus: list[Gpu]) -> MemoryPlan:
    """Add up the memory of a plan's engines.

    Args:
        model: folder.
        config: of the run.
        plan: from :func:`esplug.planning.placement.plan_engines`.
        free: memory of the machine, in bytes.
        gpus: available to engines; none on a CPU.

    Raises:
        UserError: the model is damaged.
    """
    share, gpu, room = config.gpu_memory_utilization, None, None
    if plan.device == "cpu":
        share = share or CPU_MEMORY_SHARE
        items = cpu_items(model, config)
        needed = sum(item.nbytes for item in items)
        most = cpu_kv_cache_most(model, config)
        items += (Item("KV cache", "memory", cpu_kv_cache_bytes(free, share, plan.n_engines, needed, most)),)
    else:
        gpu = sorted(gpus, key=lambda one: one.free, reverse=True)[: plan.n_gpus][-1]
        members = config.members_at_once(plan.n_engines)
        each = gpu_footprint(model, config.dtype, config.master_dtype, config.low_rank, members, plan.gpus_per_engine)
        share = share or each.memory_share(gpu.total, plan.engines_per_gpu, config.master_device)
        free_each = (gpu.free - int(share * gpu.total)) // plan.engines_per_gpu
        room = gpu_master_room(free_each, gpu.total, (1 - share) / plan.engines_per_gpu)
        cache = max(0, each.kv_cache(gpu.total, share / plan.engines_per_gpu))
        fits = config.master_device == "gpu" or (config.master_device == "auto" and each.master <= room)
        items = (
            Item("weights", "GPU", each.weights),
            Item("activations", "GPU", GPU_ACTIVATIONS),
            *([Item("adapters", "GPU", each.adapters)] if each.adapters else []),
            Item("KV cache", "GPU", cache),
            # A worker decides the same.
            Item("master", *(("GPU", each.master) if fits else ("memory", master_bytes(model, config.master_dtype)))),
            Item("Python, torch, vLLM", "memory", CPU_ENGINE_OVERHEAD),
        )
    return MemoryPlan(plan, items, share, free, gpu, room, *_kv_cache_of_an_answer(model, config))


def cpu_kv_cache_most(model: Path, config: RunConfig) -> int:
    """Return the bytes of a KV cache that holds all answers that a CPU engine decodes at a time.

    A larger one would slow down the start by seconds, since every page is cleared.
    """
    per_token, longest = _kv_cache_of_an_answer(model, config)
    if not (per_token and longest):
        return CPU_KV_CACHE_MAX
    blocks = math.ceil(longest / MIN_PREFIX_TOKENS) + 1
    return _CPU_ANSWERS * config.n_gpu_per_vllm_engine * blocks * MIN_PREFIX_TOKENS * per_token


def gpu_footprint(
    model: Path, dtype: str, master_dtype: str, low_rank: int | None, members: int, ranks: int
) -> GpuFootprint:
    """Return the memory of one engine on each of its GPUs.

    Args:
        model: folder.
        dtype, master_dtype: the settings of these names.
        low_rank: rank of the perturbations; ``None`` for full rank.
        members: low-rank members in a batch.
        ranks: GPUs that the engine spans.
    """
    width = element_bytes(dtype)
    adapters = width * adapter_elements(model, low_rank, members) if low_rank else 0
    return GpuFootprint(width * weights_size(model)[1] // ranks, adapters, master_bytes(model, master_dtype) // ranks)


def master_bytes(model: Path, master_dtype: str, blocks: Mapping[str, TensorBlock] | None = None) -> int:
    """Return the size of a model's master weights.

    Args:
        model: folder.
        master_dtype: the setting of that name.
        blocks: the part to keep of some tensors; the others are kept whole.
    """
    parts = blocks or {}
    kept = (parts.get(name, TensorBlock.whole(shape)).of(shape) for name, shape in read_shapes(model).items())
    return (4 if master_dtype == "float32" else max_element_bytes(model)) * sum(map(math.prod, kept))


def size(nbytes: int) -> str:
    """Format a number of bytes in GB, that is, 10**9 bytes."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes < 10e9 else f"{nbytes / 1e9:.1f} GB"


def _description(model: Path) -> dict[str, Any]:
    """Return the part of a model's configuration that describes its language model."""
    read = json.loads((model / "config.json").read_text(encoding="utf-8"))
    inner = read.get("text_config")
    return inner if isinstance(inner, dict) else read if isinstance(read, dict) else {}


def _kv_cache_of_an_answer(model: Path, config: RunConfig) -> tuple[int | None, int | None]:
    """Return the bytes per token, and the most tokens of prompt and answer; ``None`` for either if unknown."""
    described = _description(model)
    own = described.get("max_position_embeddings")
    return _kv_bytes(described, config), config.max_model_len or (own if isinstance(own, int) else None)


def _kv_bytes(described: dict[str, Any], config: RunConfig) -> int | None:
    """Return the bytes of one token's keys and values in all layers; ``None`` if layers differ or are not described."""
    kinds = described.get("layer_types")
    slides = described.get("sliding_window") and described.get("use_sliding_window", True)
    if set(kinds) != {"full_attention"} if kinds else slides:
        return None
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
    sizes: list[Any] = [described.get(name) for name in names]
    layers, hidden, heads, kept = *sizes[:3], sizes[3] or sizes[2]
    if not all(isinstance(each, int) and each > 0 for each in (layers, hidden, heads, kept)):
        return None
    width: int = described.get("head_dim") or hidden // heads
    return int(2 * layers * kept * width * element_bytes(config.dtype))
