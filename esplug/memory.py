"""What an engine takes of the memory of a machine or GPU, by the arithmetic with which a run places its engines."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from esplug.adapters import adapter_elements
from esplug.config import RunConfig
from esplug.model import weights_size
from esplug.placement import CPU_ENGINE_OVERHEAD, GPU_ACTIVATIONS, GPU_SPARE, Plan, cpu_kv_cache_bytes

Place: TypeAlias = Literal["memory", "GPU"]


@dataclass(frozen=True, slots=True)
class Item:
    """Something that an engine keeps: bytes in this machine's memory, or on each GPU that the engine spans."""

    what: str
    place: Place
    nbytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its name, and its memory in bytes, of which some may be taken."""

    name: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What engines take, if all are on one machine.

    Attributes:
        plan: how many engines, on what.
        items: of one engine.
        free: memory of the machine, in bytes.
        gpu: the one with the least free memory; ``None`` on a CPU.
        kv_bytes_per_token: what the KV cache takes for a token; ``None`` where the model's configuration does not say.
        longest: prompt and answer together, in tokens.
    """

    plan: Plan
    items: tuple[Item, ...]
    free: int
    gpu: Gpu | None
    kv_bytes_per_token: int | None
    longest: int | None

    def taken(self, place: Place) -> int:
        """Return what all engines take of the machine's memory, or those on one GPU of that GPU's."""
        engines = self.plan.n_engines if place == "memory" else self.plan.engines_per_gpu
        return engines * sum(item.nbytes for item in self.items if item.place == place)

    def available(self, place: Place) -> int:
        """Return what is free there."""
        return self.free if place == "memory" else self.gpu.free if self.gpu else 0

    @property
    def kv_cache(self) -> int:
        """Bytes of one engine's KV cache, on each of its GPUs."""
        return next(item.nbytes for item in self.items if item.what == "KV cache")

    @property
    def kv_tokens(self) -> int | None:
        """Tokens of prompts and answers that an engine's KV cache holds at a time."""
        ranks = max(1, self.plan.gpus_per_engine)
        return ranks * self.kv_cache // self.kv_bytes_per_token if self.kv_bytes_per_token else None


def cpu_items(model: Path, config: RunConfig) -> tuple[Item, ...]:
    """Return what one CPU engine keeps besides its KV cache; their sum decides how many engines a machine gets.

    Raises:
        UserError: the weights are damaged.
    """
    stored, elements = weights_size(model)
    items = [
        Item("weights", "memory", stored),
        Item("weights, packed", "memory", stored),
        Item("master", "memory", _master_bytes(config, stored, elements)),
        Item("Python, torch, vLLM", "memory", CPU_ENGINE_OVERHEAD),
    ]
    if config.low_rank:
        nbytes = 4 * adapter_elements(model, config.low_rank, config.members_at_once(1))
        items.append(Item("adapters", "memory", nbytes))
    return tuple(items)


def plan_memory(model: Path, config: RunConfig, plan: Plan, free: int, gpus: list[Gpu]) -> MemoryPlan:
    """Add up what the engines of a plan take.

    Args:
        model: folder.
        config: of the run.
        plan: from :func:`esplug.placement.plan_engines`.
        free: memory of the machine, in bytes.
        gpus: to be used; none on a CPU.

    Raises:
        UserError: the model is damaged.
    """
    share = config.gpu_memory_utilization or plan.memory_share
    gpu = min(gpus, key=lambda each: each.free) if plan.device == "cuda" else None
    if gpu is None:
        items = cpu_items(model, config)
        needed = sum(item.nbytes for item in items)
        items += (Item("KV cache", "memory", cpu_kv_cache_bytes(free, share, plan.n_engines, needed)),)
    else:
        items = _gpu_items(model, config, plan, share, gpu)
    described = _description(model)
    own = described.get("max_position_embeddings")
    return MemoryPlan(plan, items, free, gpu, _kv_bytes(described, config), config.max_model_len or own)


def size(nbytes: int) -> str:
    """Write a number of bytes in GB, as disks and GPUs are sold."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes < 10e9 else f"{nbytes / 1e9:.1f} GB"


def _gpu_items(model: Path, config: RunConfig, plan: Plan, share: float, gpu: Gpu) -> tuple[Item, ...]:
    """Return what an engine keeps on each of its GPUs, and where its master goes, as a worker decides it."""
    stored, elements = weights_size(model)
    ranks = plan.gpus_per_engine
    weights = (4 if config.dtype == "float32" else 2) * elements // ranks
    adapters = 0
    if config.low_rank:
        adapters = 2 * adapter_elements(model, config.low_rank, config.members_at_once(plan.n_engines))
    vllm = int(share * gpu.total) // plan.engines_per_gpu
    master = _master_bytes(config, stored, elements)
    room = min((gpu.free - int(share * gpu.total)), int((1 - share) * gpu.total)) // plan.engines_per_gpu - GPU_SPARE
    on_gpu = config.master_device == "gpu" or (config.master_device == "auto" and master // ranks <= room)
    items = [
        Item("weights", "GPU", weights),
        Item("activations", "GPU", GPU_ACTIVATIONS),
        *([Item("adapters", "GPU", adapters)] if adapters else []),
        Item("KV cache", "GPU", max(0, vllm - weights - adapters - GPU_ACTIVATIONS)),
        Item("master", "GPU", master // ranks) if on_gpu else Item("master", "memory", master),
        Item("Python, torch, vLLM", "memory", CPU_ENGINE_OVERHEAD),
    ]
    return tuple(items)


def _master_bytes(config: RunConfig, stored: int, elements: int) -> int:
    return 4 * elements if config.master_dtype == "float32" else stored


def _description(model: Path) -> dict[str, Any]:
    """Return the part of a model's configuration that describes its language model."""
    read = json.loads((model / "config.json").read_text(encoding="utf-8"))
    inner = read.get("text_config")
    return inner if isinstance(inner, dict) else read if isinstance(read, dict) else {}


def _kv_bytes(described: dict[str, Any], config: RunConfig) -> int | None:
    """Return the bytes that one token's keys and values take in all layers; ``None`` where layers differ in that."""
    if described.get("layer_types") or described.get("sliding_window"):
        return None
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
    sizes: list[Any] = [described.get(name) for name in names]
    layers, hidden, heads, kept = *sizes[:3], sizes[3] or sizes[2]
    if not all(isinstance(each, int) and each > 0 for each in (layers, hidden, heads, kept)):
        return None
    width: int = described.get("head_dim") or hidden // heads
    return int(2 * layers * kept * width * (4 if config.dtype == "float32" else 2))
