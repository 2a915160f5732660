"""Size of the LoRA adapters that vLLM holds for members of low rank, and the vLLM options that request them."""

from pathlib import Path
from typing import Any

from esplug.checkpoints.safetensors_shards import read_shapes
from esplug.noise.low_rank import is_perturbed

_RANKS = (1, 8, 16, 32, 64)  # that vLLM has room for


_MOST_SEQUENCES = 512  # in a step of a GPU: as many as vLLM's largest CUDA graph takes


def adapter_options(model: Path, rank: int, slots: int, device: str) -> dict[str, Any]:
    """Return the options of ``vllm.LLM`` for so many members of low rank in a batch."""
    options = {
        "enable_lora": True,
        "max_loras": slots,
        "max_lora_rank": _room(rank),
        "lora_target_modules": sorted({name.split(".")[-2] for name in _linear(model)}),
    }
    return options | ({"max_num_seqs": _MOST_SEQUENCES} if device == "cuda" else {})


def adapter_elements(model: Path, rank: int, slots: int) -> int:
    """Return how many numbers so many members' adapters are, in the room that vLLM has for them."""
    return slots * _room(rank) * sum(map(sum, _linear(model).values()))


def _linear(model: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that members perturb."""
    return {name: shape for name, shape in read_shapes(model).items() if is_perturbed(name, shape)}


def _room(rank: int) -> int:
    return next(room for room in _RANKS if room >= rank)
