"""Tensors of the master: what this process keeps of each checkpoint tensor, in GPU or host memory."""

import logging
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from esplug.checkpoints.safetensors_shards import plan_shards, read_tensors, write_index, write_tensors
from esplug.errors import UserError
from esplug.weights.partition import BlockView, TensorBlock
from esplug.weights.rank_group import RankGroup

MasterDtype: TypeAlias = Literal["float32", "model"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class MasterTensors:
    """A copy of the checkpoint's tensors, or of this process's blocks. See ``MasterWeights`` for the arguments."""

    def __init__(
        self,
        tensors: Iterable[tuple[str, torch.Tensor]],
        master_dtype: MasterDtype,
        blocks: Mapping[str, TensorBlock],
        device: torch.device,
        in_host: bool,
        ranks: RankGroup,
        kernels: Any,
        beat: Callable[[], None],
    ) -> None:
        self._device, self._in_host, self._ranks, self._beat = device, in_host, ranks, beat
        self.kept: dict[str, torch.Tensor] = {}  # the tensors, or blocks of them, by checkpoint name
        self.dtypes: dict[str, torch.dtype] = {}  # of the whole tensors in the checkpoint
        self.shapes: dict[str, tuple[int, ...]] = {}  # likewise
        self.blocks: dict[str, TensorBlock] = {}  # the part of each tensor that is kept
        self.views: dict[str, BlockView] = {}  # of the floating-point tensors, for the kernels
        for name, tensor in tensors:
            if name in self.kept:
                raise ValueError(f"tensor {name} comes twice")
            is_float = tensor.is_floating_point()
            if is_float and tensor.dtype not in FLOATS:
                raise UserError(
                    f"tensor {name} has type {str(tensor.dtype).removeprefix('torch.')}, which cannot be perturbed; "
                    "convert the model to bfloat16, float16 or float32"
                )
            shape = tuple(tensor.shape)
            block = blocks.get(name) or TensorBlock.whole(shape, counted=ranks.rank == 0)
            self.dtypes[name], self.shapes[name], self.blocks[name] = tensor.dtype, shape, block
            dtype = torch.float32 if is_float and master_dtype == "float32" else tensor.dtype
            self.kept[name] = kept = self._allocate(block.of(shape), dtype).copy_(block.cut(tensor))
            if is_float:
                rows = 1 if block.is_contiguous(shape) else block.of(shape)[0]
                matrix = kernels.flat(kept).reshape(rows, -1)
                self.views[name] = BlockView(matrix, tuple(kept.shape), block.first(shape), math.prod(shape[1:]))
            beat()

    def written_dtype(self, name: str, dtype: torch.dtype | None) -> torch.dtype:
        """Return the type in which a tensor is written: the checkpoint's, or ``dtype`` for floating-point tensors."""
        return dtype if dtype is not None and name in self.views else self.dtypes[name]

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Allocate a tensor on the device."""
        return torch.empty(tuple(shape), dtype=dtype, device=self._device)

    def save(self, folder: Path, stream: Iterator[tuple[str, torch.Tensor]], dtype: torch.dtype | None) -> None:
        """Write a stream of all tensors, of type ``dtype``, in shards. Rank 0 gathers them from all ranks."""
        sizes = {name: math.prod(self.shapes[name]) * self.written_dtype(name, dtype).itemsize for name in self.shapes}
        shards = plan_shards(sizes)
        failed: Exception | None = None
        for file, names in shards.items():
            shard: dict[str, torch.Tensor] = {}
            for name in names:
                tensor = self._gather(*next(stream))
                if self._ranks.rank == 0:
                    shard[name] = tensor
            if self._ranks.rank == 0 and failed is None:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    write_tensors(folder / file, shard)
                except Exception as error:  # raised below: the other ranks wait for this one to gather the rest
                    failed = error
        if failed is not None:
            raise failed
        if self._ranks.rank == 0:
            write_index(folder, shards, sizes)

    def _gather(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """Return the whole tensor on the CPU, from the ``part`` of it that each process has."""
        block, shape = self.blocks[name], self.shapes[name]
        if block.of(shape) == shape:
            return part.cpu()
        whole = torch.zeros(shape, dtype=part.dtype)
        if block.counted:
            block.cut(whole).copy_(part)
        self._ranks.join(whole)
        return whole

    def overwrite(self, folder: Path) -> None:
        """See :meth:`esplug.weights.master.MasterWeights.overwrite`."""
        missing = set(self.views)  # the others never change
        for name, tensor in read_tensors(folder):
            if name not in self.kept or tuple(tensor.shape) != self.shapes[name]:
                raise UserError(f"{folder}: tensor {name} is not one of this model's")
            if name in missing:
                self._beat()
                self.kept[name].copy_(self.blocks[name].cut(tensor))
                missing.remove(name)
        if missing:
            raise UserError(f"{folder}: tensor {min(missing)} is missing")

    def _allocate(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        if not self._in_host:
            return self.empty(shape, dtype)
        tensor = torch.empty(tuple(shape), dtype=dtype)
        if self._device.type == "cuda" and tensor.nbytes:
            _lock_pages(tensor)
        return tensor


def _lock_pages(tensor: torch.Tensor) -> None:
    """Page-lock a tensor's memory until it is freed. torch's own pinned memory takes up to twice as much."""
    cudart: Callable[[], Any] = torch.cuda.cudart
    runtime = cudart()
    if int(runtime.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)) == 0:
        weakref.finalize(tensor.untyped_storage(), runtime.cudaHostUnregister, tensor.data_ptr())
        return
    logging.getLogger(__name__).warning("the system locks no more memory; weights will be streamed more slowly")
    with suppress(RuntimeError):  # CUDA reports the failure once more, to whichever call comes next
        torch.zeros(1, device="cuda")
