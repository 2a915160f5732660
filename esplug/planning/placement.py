"""Placement: the number of engines of a run, and their GPUs or cores, for given machines. Pure arithmetic."""

import math
from dataclasses import dataclass
from typing import Literal

from esplug.config import RunConfig
from esplug.errors import UserError
from esplug.utils.cores import GIB

CPU_ENGINE_OVERHEAD = 2 * GIB  # of an engine besides weights and KV cache: Python, torch, vLLM and its buffers
CPU_KV_CACHE_MAX, CPU_KV_CACHE_MIN = 4 * GIB, GIB // 4  # a larger cache is not needed, a smaller one not useful
CPU_MEMORY_SHARE = 0.5  # default share of free memory for all engines
GPU_ACTIVATIONS, GPU_SPARE = 3 * GIB, 2 * GIB  # used by vLLM; kept free for temporary needs such as saving
GPU_DRIVER = GIB  # used at most by the driver, before an engine starts
GPU_KV_CACHE_MIN = GIB // 2  # of an engine that shares a GPU


@dataclass(frozen=True, slots=True)
class Node:
    """The size of one machine, in a cluster or not: GPUs, CPU cores, and memory in bytes."""

    gpus: int
    cores: int
    memory: int


@dataclass(frozen=True, slots=True)
class Resources:
    """The machines of the cluster. An engine does not span machines."""

    nodes: tuple[Node, ...]

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def cores(self) -> int:
        """CPU cores of all nodes."""
        return sum(node.cores for node in self.nodes)


@dataclass(frozen=True, slots=True)
class Plan:
    """The engines of a run, and the GPUs and cores of each."""

    n_engines: int
    device: Literal["cuda", "cpu"]
    gpus_per_engine: int
    cores_per_engine: int
    engines_per_gpu: int = 1

    @property
    def gpu_share(self) -> float:
        """GPUs per engine, as requested from Ray."""
        return self.gpus_per_engine / self.engines_per_gpu

    @property
    def n_gpus(self) -> int:
        """GPUs of all engines."""
        return math.ceil(self.n_engines * self.gpu_share)

    def describe(self) -> str:
        """Describe the plan in words."""
        engines = f"{self.n_engines} engine{'s' * (self.n_engines > 1)}"
        if self.engines_per_gpu > 1:
            return f"{engines}, {self.engines_per_gpu} to a GPU"
        if self.device == "cuda":
            return f"{engines} of {self.gpus_per_engine} GPU{'s' * (self.gpus_per_engine > 1)}"
        return f"{engines} of {self.cores_per_engine} CPU core{'s' * (self.cores_per_engine > 1)}"


def plan_engines(config: RunConfig, found: Resources, engine_bytes: int) -> Plan:
    """Decide the number and size of the engines. It is an error to request more than the machines that were found."""
    span, wanted = config.n_gpu_per_vllm_engine, config.n_vllm_engines
    if config.use_gpus not in (None, "none") and found.gpus == 0:
        raise UserError(
            f"--use-gpus {config.use_gpus}: no usable GPU found here; leave it out to run on the CPU, "
            "or install esplug[gpu] on a machine with one"
        )
    if found.gpus and config.use_gpus != "none":
        sharing = config.n_vllm_engines_per_gpu
        # Each engine needs a core.
        most = sum(min(node.gpus * sharing // span, node.cores) for node in found.nodes)
        if (wanted or 1) > most:
            raise UserError(_too_many(config, found.gpus, "GPU", len(found.nodes)))
        return Plan(wanted or most, "cuda", span, 1, sharing)
    if config.n_vllm_engines_per_gpu > 1:
        raise UserError(
            f"--n-vllm-engines-per-gpu {config.n_vllm_engines_per_gpu}: the engines run on the CPU here; leave it out"
        )
    if config.master_device == "gpu":
        raise UserError("--master-device gpu: the engines run on the CPU here; leave it out")
    most = sum(node.cores // span for node in found.nodes)
    if (wanted or 1) > most:
        raise UserError(_too_many(config, found.cores, "CPU core", len(found.nodes)))
    needed = engine_bytes + CPU_KV_CACHE_MIN
    fitting = sum(min(node.cores // span, int(0.8 * node.memory) // needed) for node in found.nodes)
    n_engines = wanted or max(1, fitting)
    most_cores = max(node.cores for node in found.nodes)
    multiples = range(most_cores - most_cores % span, span, -span)
    enough = (cores for cores in multiples if sum(node.cores // cores for node in found.nodes) >= n_engines)
    return Plan(n_engines, "cpu", 0, next(enough, span))


def cpu_kv_cache_bytes(free: int, share: float, engines_here: int, engine_bytes: int, most: int) -> int:
    """Return the bytes of one CPU engine's KV cache.

    Args:
        free: free memory of the node, in bytes.
        share: share of ``free`` for all engines.
        engines_here: number of engines on the node.
        engine_bytes: memory of one engine besides its KV cache.
        most: bytes of KV cache that an engine can use.
    """
    left = int(free * share) // engines_here - engine_bytes
    return max(CPU_KV_CACHE_MIN, min(CPU_KV_CACHE_MAX, most, left))


@dataclass(frozen=True, slots=True)
class GpuFootprint:
    """Bytes that one engine uses on each of its GPUs."""

    weights: int  # in the engine's dtype
    adapters: int  # of low-rank members, in the engine's dtype
    master: int  # if the master weights are on the GPU

    def kv_cache(self, total: int, share: float) -> int:
        """Return the bytes for the KV cache if vLLM has ``share`` of a GPU's ``total`` bytes; negative if too few."""
        return int(share * total) - self.weights - self.adapters - GPU_ACTIVATIONS

    def memory_share(self, total: int, engines: int, master_device: Literal["auto", "gpu", "host"]) -> float:
        """Return the default share of a GPU's ``total`` bytes for the vLLM of all its ``engines``.

        It is reduced if that makes the master fit. With ``auto``, a fifth of the GPU is kept for KV caches.
        """
        usual = 0.9 if engines == 1 else 0.7  # every engine has a master, too
        beside = math.floor(100 * (1 - (GPU_DRIVER + engines * (self.master + GPU_SPARE)) / total)) / 100
        if master_device == "host" or beside >= usual:
            return usual
        least = GPU_KV_CACHE_MIN if master_device == "gpu" else total // 5 // engines
        return beside if self.kv_cache(total, beside / engines) >= least else usual


def gpu_master_room(free: int, total: int, share: float) -> int:
    """Return the bytes that a GPU has for an engine's master weights; negative if there is no room.

    Args:
        free: free memory of the GPU, in bytes, after vLLM has allocated its own.
        total: memory of the GPU, in bytes.
        share: share of ``total`` that this engine may use outside vLLM. vLLM may still allocate the rest.
    """
    return min(free, int(share * total)) - GPU_SPARE


def element_bytes(dtype: str) -> int:
    """Return the bytes of an element in the engines' ``dtype``; vLLM's own choice, ``auto``, has 16 bits."""
    return 4 if dtype == "float32" else 2


def _too_many(config: RunConfig, there: int, unit: str, nodes: int) -> str:
    wanted, span = config.n_vllm_engines, config.n_gpu_per_vllm_engine
    asked = f"--n-vllm-engines {wanted} x " if wanted else ""
    if unit == "GPU" and config.n_vllm_engines_per_gpu > 1:
        need = math.ceil((wanted or 1) / config.n_vllm_engines_per_gpu)
        return f"--n-vllm-engines {wanted} asks for {need} GPUs or a core each, but there are {there} GPUs"
    need, on = (wanted or 1) * span, f" on {nodes} nodes" if nodes > 1 else ""
    plural = "s" if there > 1 else ""
    return f"{asked}--n-gpu-per-vllm-engine {span} asks for {need} {unit}s, but there are {there} {unit}{plural}{on}"
