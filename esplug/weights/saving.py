"""Saving: writes master weights as a sharded safetensors checkpoint."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from esplug.checkpoints.safetensors_shards import plan_shards, write_index, write_tensors
from esplug.weights.rank_group import RankGroup
from esplug.weights.tensors import MasterTensors


def save_tensors(
    folder: Path,
    tensors: MasterTensors,
    stream: Iterator[tuple[str, torch.Tensor]],
    dtype: torch.dtype | None,
    ranks: RankGroup,
) -> None:
    """Write the tensors of a stream in shards. Rank 0 gathers and writes them, and the other ranks take part.

    ``dtype`` is that of the stream's floating-point tensors, or ``None`` for the checkpoint's own.

    Raises:
        OSError: a shard could not be written.
    """
    sizes = {
        name: math.prod(shape) * tensors.written_dtype(name, dtype).itemsize for name, shape in tensors.shapes.items()
    }
    shards = plan_shards(sizes)
    failed: Exception | None = None
    for file, names in shards.items():
        shard: dict[str, torch.Tensor] = {}
        for name in names:
            tensor = tensors.gather(*next(stream))
            if ranks.rank == 0:
                shard[name] = tensor
        if ranks.rank == 0 and failed is None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_tensors(folder / file, shard)
            except Exception as error:  # raised below: the other ranks wait for this one to gather the rest
                failed = error
    if failed is not None:
        raise failed
    if ranks.rank == 0:
        write_index(folder, shards, sizes)
