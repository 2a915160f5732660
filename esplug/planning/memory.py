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
from esplug.planning import placement
from esplug.planning.adapter_sizes import adapter_elements
from esplug.planning.placement import GpuFootprint, Plan, element_bytes
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
    """Memory of the engines in bytes, if all are on one machine."""

    plan: Plan
    items: tuple[Item, ...]  # of one engine
    share: float  # of each GPU's memory that vLLM uses; on a CPU, of free memory that the engines use
    free: int  # memory of the machine
    gpu: Gpu | None  # of those that the engines would use, the one with the least free memory
    master_room: int | None  # outside vLLM on that GPU, for one engine's master weights
    kv_bytes_per_token: int | None  # of the KV cache; None if the model's configuration does not say
    longest: int | None  # most tokens of prompt and answer together, if known

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
    """Return the memory of one CPU engine besides its KV cache. Its sum decides how many engines a machine gets."""
    weights = element_bytes(config.dtype) * weights_size(model)[1]
    items = [
        Item("weights", "memory", weights),
        Item("weights, packed", "memory", weights),
        Item("master", "memory", master_bytes(model, config.master_dtype)),
        Item("Python, torch, vLLM", "memory", placement.CPU_ENGINE_OVERHEAD),
    ]
    if config.low_rank:
        nbytes = 4 * adapter_elements(model, config.low_rank, config.members_at_once(1))
        items.append(Item("adapters", "memory", nbytes))
    return tuple(items)


def plan_memory(model: Path, config: RunConfig, plan: Plan, free: int, gpus: list[Gpu]) -> MemoryPlan:
    """Add up the memory of a plan's engines on a machine with ``free`` bytes and the available ``gpus``."""
    share, gpu, room = config.gpu_memory_utilization, None, None
    if plan.device == "cpu":
        share = share or placement.CPU_MEMORY_SHARE
        items = cpu_items(model, config)
        needed = sum(item.nbytes for item in items)
        most = cpu_kv_cache_most(model, config)
        items += (Item("KV cache", "memory", placement.cpu_kv_cache_bytes(free, share, plan.n_engines, needed, most)),)
    else:
        gpu = sorted(gpus, key=lambda one: one.free, reverse=True)[: plan.n_gpus][-1]
        members = config.members_at_once(plan.n_engines)
        each = gpu_footprint(model, config.dtype, config.master_dtype, config.low_rank, members, plan.gpus_per_engine)
        share = share or each.memory_share(gpu.total, plan.engines_per_gpu, config.master_device)
        free_each = (gpu.free - int(share * gpu.total)) // plan.engines_per_gpu
        room = placement.gpu_master_room(free_each, gpu.total, (1 - share) / plan.engines_per_gpu)
        cache = max(0, each.kv_cache(gpu.total, share / plan.engines_per_gpu))
        fits = config.master_device == "gpu" or (config.master_device == "auto" and each.master <= room)
        items = (
            Item("weights", "GPU", each.weights),
            Item("activations", "GPU", placement.GPU_ACTIVATIONS),
            *([Item("adapters", "GPU", each.adapters)] if each.adapters else []),
            Item("KV cache", "GPU", cache),
            # A worker decides the same.
            Item("master", *(("GPU", each.master) if fits else ("memory", master_bytes(model, config.master_dtype)))),
            Item("Python, torch, vLLM", "memory", placement.CPU_ENGINE_OVERHEAD),
        )
    return MemoryPlan(plan, items, share, free, gpu, room, *_kv_cache_of_an_answer(model, config))


def cpu_kv_cache_most(model: Path, config: RunConfig, answers: int = _CPU_ANSWERS) -> int:
    """Return the bytes of a KV cache that holds all ``answers`` that a CPU engine decodes at a time.

    A larger one would slow down the start by seconds, since every page is cleared.
    """
    per_token, longest = _kv_cache_of_an_answer(model, config)
    if not (per_token and longest):
        return placement.CPU_KV_CACHE_MAX
    blocks = math.ceil(longest / MIN_PREFIX_TOKENS) + 1
    return answers * config.n_gpu_per_vllm_engine * blocks * MIN_PREFIX_TOKENS * per_token


def gpu_footprint(
    model: Path, dtype: str, master_dtype: str, low_rank: int | None, members: int, ranks: int
) -> GpuFootprint:
    """Return the memory of one engine on each of its ``ranks`` GPUs, with ``members`` low-rank members in a batch."""
    width = element_bytes(dtype)
    adapters = width * adapter_elements(model, low_rank, members) if low_rank else 0
    return GpuFootprint(width * weights_size(model)[1] // ranks, adapters, master_bytes(model, master_dtype) // ranks)


def master_bytes(model: Path, master_dtype: str, blocks: Mapping[str, TensorBlock] | None = None) -> int:
    """Return the size of a model's master weights. ``blocks`` holds the part to keep of tensors not kept whole."""
    parts = blocks or {}
    kept = (parts.get(name, TensorBlock.whole(shape)).of(shape) for name, shape in read_shapes(model).items())
    return (4 if master_dtype == "float32" else max_element_bytes(model)) * sum(map(math.prod, kept))


def size(nbytes: int) -> str:
    """Format a number of bytes in GB, that is, 10**9 bytes."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes < 10e9 else f"{nbytes / 1e9:.1f} GB"


def _kv_cache_of_an_answer(model: Path, config: RunConfig) -> tuple[int | None, int | None]:
    """Return the bytes per token, and the most tokens of prompt and answer; ``None`` for either if unknown."""
    read = json.loads((model / "config.json").read_text(encoding="utf-8"))
    inner = read.get("text_config")  # describes the language model of a multimodal one
    described = inner if isinstance(inner, dict) else read
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
