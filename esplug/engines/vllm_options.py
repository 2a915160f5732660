"""Options of vLLM's ``LLM``: an engine's environment, memory and adapters, from the run's settings."""

import os
from pathlib import Path
from typing import Any

from esplug.engines.messages import EngineSettings
from esplug.errors import UserError
from esplug.planning.adapter_sizes import adapter_options
from esplug.planning.memory import gpu_footprint
from esplug.planning.placement import CPU_MEMORY_SHARE, GPU_KV_CACHE_MIN, GpuFootprint
from esplug.planning.shared_prefix import MIN_PREFIX_TOKENS
from esplug.utils.cores import usable_cores
from esplug.utils.torch_builds import hide_in_children


def rank_cores(share: tuple[int, int], most: int | None, ranks: int) -> list[list[int]]:
    """Divide an engine's share of this machine's usable CPU cores among its tensor-parallel ranks.

    ``share`` is the index of the engine's share and the number of equal shares; ``most`` limits its cores. With fewer
    cores than ranks, ranks share cores.
    """
    index, shares = share
    usable = usable_cores()
    each = max(1, len(usable) // shares)
    cores = (usable[index * each : (index + 1) * each] or usable)[:most]
    return [cores[rank::ranks] or cores for rank in range(ranks)]


def set_environment(device: str, cores: list[list[int]]) -> None:
    """Set vLLM's environment variables, and bind threads to each rank's ``cores`` on a CPU."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the actor is vLLM's process
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    hide_in_children()
    if device != "cpu":
        return
    if len(cores) == 1:  # one process: torch's threads inherit its affinity
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(len(cores[0]))
        os.sched_setaffinity(0, cores[0])
    else:
        os.environ.pop("OMP_NUM_THREADS", None)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, part)) for part in cores)


def llm_options(settings: EngineSettings, kv_cache_bytes: int | None) -> dict[str, Any]:
    """Return the arguments of vLLM's ``LLM``, but for the worker extension.

    Raises:
        UserError: engines that share a GPU would have too little memory each.
    """
    ranks, share = settings.tensor_parallel_size, memory_share(settings)
    options: dict[str, Any] = {
        "model": settings.model,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "tensor_parallel_size": ranks,
        "distributed_executor_backend": "mp" if ranks > 1 else None,  # Ray is the default in a placement group
        "enable_prefix_caching": settings.prefix_caching,
        "gpu_memory_utilization": share / settings.engines_per_gpu,
        "generation_config": "vllm",
        "seed": 0,
        "trust_remote_code": settings.trust_remote_code,
        "language_model_only": settings.text_only,
    }
    if settings.low_rank:
        model, members = Path(settings.model), settings.members_at_once
        options |= adapter_options(model, settings.low_rank, members, settings.device)
    if settings.engines_per_gpu > 1:
        options |= {"kv_cache_memory_bytes": shared_gpu_kv_cache(settings, share)}
    if settings.device == "cpu":  # the smallest block there, so that short shared prefixes are cached too
        options |= {"kv_cache_memory_bytes": kv_cache_bytes, "block_size": MIN_PREFIX_TOKENS, "enforce_eager": True}
    return options


def memory_share(settings: EngineSettings) -> float:
    """Return the share of a GPU's memory, or of a CPU's free memory, that engines use: the user's setting if given."""
    if settings.memory_share:
        return settings.memory_share
    if settings.device == "cpu":
        return CPU_MEMORY_SHARE
    footprint, total = _gpu_footprint(settings)
    return footprint.memory_share(total, settings.engines_per_gpu, settings.master_device)


def shared_gpu_kv_cache(settings: EngineSettings, share: float) -> int:
    """Return the bytes of KV cache for an engine that shares its GPU.

    Left to itself, vLLM would count the memory of the GPU's other engines as this engine's own.

    Raises:
        UserError: there is too little.
    """
    footprint, total = _gpu_footprint(settings)
    left = footprint.kv_cache(total, share / settings.engines_per_gpu)
    if left < GPU_KV_CACHE_MIN:
        raise UserError(
            f"--n-vllm-engines-per-gpu {settings.engines_per_gpu}: each engine may take "
            f"{share * total / settings.engines_per_gpu / 1e9:.1f} GB, "
            "which is too little for this model; choose fewer, or more --gpu-memory-utilization"
        )
    return left


def _gpu_footprint(settings: EngineSettings) -> tuple[GpuFootprint, int]:
    """Return the memory that an engine needs on a GPU, and the GPU's total memory in bytes."""
    import torch

    model, members = Path(settings.model), settings.members_at_once
    kinds = settings.dtype, settings.master_dtype, settings.low_rank
    return gpu_footprint(model, *kinds, members, settings.tensor_parallel_size), torch.cuda.mem_get_info()[1]
