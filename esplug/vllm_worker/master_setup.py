"""Setup of an engine's master weights: where they come from, and where each rank keeps them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class MasterSetup:
    """What each vLLM worker of an engine needs to load the master weights.

    Attributes:
        model: folder of the base model's checkpoint.
        dtype: the setting ``master_dtype``.
        device: the setting ``master_device``.
        gpu_share: share of a GPU's memory that the master weights may use.
        low_rank: rank of the members' perturbations; ``None`` if they are full.
        rank_cores: CPU cores on which each tensor-parallel rank makes noise.
        heartbeat: ``place`` of the engine's :class:`esplug.vllm_worker.heartbeat.Heartbeat`.
    """

    model: str
    dtype: Literal["float32", "model"]
    device: Literal["auto", "gpu", "host"]
    gpu_share: float
    low_rank: int | None
    rank_cores: list[list[int]]
    heartbeat: str
