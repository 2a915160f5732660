"""Adapter sizes: the LoRA adapters that vLLM holds for low-rank members, and the vLLM options that request them."""

import re
from pathlib import Path
from typing import Any

from esplug.checkpoints.safetensors_shards import read_shapes
from esplug.errors import UserError
from esplug.noise.low_rank import is_perturbed

_RANKS = (1, 8, 16, 32, 64)  # supported by vLLM; others are padded to the next one
_EXPERTS = re.compile(r"\.experts\.|\.block_sparse_moe\.")  # in names of tensors
_GPU_SEQUENCES = 512  # in a decoding step: as many as vLLM's largest CUDA graph has


def adapter_options(model: Path, rank: int, slots: int, device: str) -> dict[str, Any]:
    """Return the options of ``vllm.LLM`` for batches of ``slots`` members of this rank."""
    options = {
        "enable_lora": True,
        "max_loras": slots,
        "max_lora_rank": _padded(rank),
        "lora_target_modules": sorted({name.split(".")[-2] for name in _linear_shapes(model)}),
    }
    return options | ({"max_num_seqs": _GPU_SEQUENCES} if device == "cuda" else {})


def adapter_elements(model: Path, rank: int, slots: int) -> int:
    """Return the number of elements in the adapters that vLLM allocates for ``slots`` members."""
    return slots * _padded(rank) * sum(map(sum, _linear_shapes(model).values()))


def _linear_shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that members perturb.

    Raises:
        UserError: the model has experts, for which esplug makes no adapters.
    """
    shapes = read_shapes(model)
    expert = next((name for name in shapes if _EXPERTS.search(name)), None)
    if expert:
        raise UserError(
            f"--perturbation low-rank: not for {model}, which has experts ({expert}); choose --perturbation full"
        )
    return {name: shape for name, shape in shapes.items() if is_perturbed(name, shape)}


def _padded(rank: int) -> int:
    return next(supported for supported in _RANKS if supported >= rank)
