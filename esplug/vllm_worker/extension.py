"""Worker extension: a class that vLLM mixes into each of its workers. It holds the master weights.

``LLM.collective_rpc`` calls the public ``es_*`` methods. Arguments and results are plain values.
"""

import ctypes
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from esplug.planning.memory import master_bytes
from esplug.planning.placement import gpu_master_room
from esplug.vllm_worker.heartbeat import Heartbeat
from esplug.vllm_worker.reload import reload
from esplug.vllm_worker.undefined_logits import watch_logits

if TYPE_CHECKING:
    from esplug.checkpoints.history import CatchUp, CaughtUp
    from esplug.vllm_worker.direct_load import DirectLoader, ParameterMap
    from esplug.vllm_worker.master_setup import MasterSetup
    from esplug.weights.master import MasterWeights
    from esplug.weights.partition import TensorBlock
    from esplug.weights.rank_group import RankGroup

#: Private names of vLLM, checked on 0.26.0 and 0.32.0.
VLLM_INTERNALS = (
    "vllm.v1.worker.worker_base:WorkerBase.rank",
    "vllm.v1.worker.worker_base:WorkerBase.device",
    "vllm.v1.worker.worker_base:WorkerBase.model_runner",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.get_model()",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.model_config",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.kv_caches",
    "vllm.lora.model_manager:LoRAModelManager.lora_slots",
    "vllm.distributed.parallel_state:get_tp_group()",
    "vllm.distributed.parallel_state:GroupCoordinator.cpu_group",
    "vllm.distributed.parallel_state:GroupCoordinator.rank_in_group",
    "vllm.distributed.parallel_state:GroupCoordinator.world_size",
)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt


class ESWorkerExtension:
    """Holds the master weights and writes a member's perturbed weights into vLLM's model.

    If possible, :class:`.direct_load.DirectLoader` writes them. Each tensor-parallel rank then holds only the master
    weights of its own part of the model. Otherwise every rank holds all of them, and vLLM reloads its model.
    """

    rank: int
    device: torch.device
    model_runner: Any
    _es_places: "ParameterMap | None"  # None if vLLM reloads
    _es_fast_path: "DirectLoader | None"
    _es_in_host: bool  # whether the master weights are in the host's memory though the model is on a GPU
    _es_master: "MasterWeights"
    _es_undefined: torch.Tensor

    def es_catch_up(self, setup: "MasterSetup", catch_up: "CatchUp") -> "CaughtUp":
        """Load the base model's master weights, and replay the run's updates from these or from saved ones."""
        # numba, which the kernels need, must not be imported before vLLM's CPU engine has started.
        from esplug.weights.rank_group import RankGroup

        if not hasattr(self, "_es_places"):
            self._es_prepare_model(self.model_runner.get_model())
            self._es_choose_loader(setup)
        elif self._es_places is not None:
            self._es_load_master(setup, self._es_places.blocks, _rank_group())
        else:
            self._es_load_master(setup, {}, RankGroup())
        caught_up = self._es_master.catch_up(Path(setup.model), catch_up)
        _keep_freed_memory()
        return caught_up

    def _es_prepare_model(self, model: torch.nn.Module) -> None:
        """Have the model count undefined logits and, on a CPU, use C kernels."""
        slots = getattr(getattr(model, "lora_manager", None), "lora_slots", 0)
        self._es_undefined = torch.zeros(1 + slots, dtype=torch.int64, device=self.device)
        watch_logits(model, self._es_undefined)
        if self.device.type == "cpu":
            from esplug.vllm_worker.cpu_layers import use_c_kernels

            use_c_kernels(model)

    def _es_choose_loader(self, setup: "MasterSetup") -> None:
        """Load the master weights, and choose the direct loader if it works on all ranks."""
        from esplug.weights.rank_group import RankGroup

        ranks = _rank_group()
        places, loader = self._es_find_places(Path(setup.model), ranks), None
        if places is not None:
            self._es_load_master(setup, places.blocks, ranks)
            loader = self._es_find_direct_loader(places, ranks)
        if loader is None:
            places = None
            self._es_load_master(setup, {}, RankGroup())
        self._es_places, self._es_fast_path = places, loader

    def _es_load_master(self, setup: "MasterSetup", blocks: "Mapping[str, TensorBlock]", ranks: "RankGroup") -> None:
        """Load the base model's weights: this rank's ``blocks``, or all if there are none."""
        from esplug.weights.master import MasterWeights

        vars(self).pop("_es_master", None)  # there may be no memory for two
        if not hasattr(self, "_es_places"):  # the first time
            needed = master_bytes(Path(setup.model), setup.dtype, blocks)
            self._es_in_host = self._es_keep_in_host(needed, setup.gpu_share, setup.device, ranks)
        cores = setup.rank_cores[self.rank]
        self._es_master = MasterWeights.load(
            Path(setup.model),
            setup.dtype,
            ranks=ranks,
            threads=len(cores),
            cores=cores,
            beat=Heartbeat(setup.heartbeat).beat,
            low_rank=setup.low_rank,
            device=self.device,
            in_host=self._es_in_host,
            blocks=blocks,
        )

    def _es_keep_in_host(self, needed: int, share: float, choice: str, ranks: "RankGroup") -> bool:
        """Choose where to keep the master weights: on the GPU if they fit into its share on all ranks.

        Args:
            needed: their bytes on this rank.
            share: of the GPU's memory that they may use.
            choice: the setting ``master_device``.
            ranks: tensor-parallel ranks, which choose together.

        Raises:
            UserError: ``choice`` is ``gpu``, and they do not fit.
        """
        from esplug.errors import UserError

        if self.device.type != "cuda" or choice == "host":
            return self.device.type == "cuda"
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        room = gpu_master_room(free, total, share)
        if ranks.sums([needed > room]) == [0]:
            return False
        if choice == "gpu":
            raise UserError(
                f"--master-device gpu: the master weights take {needed / 1e9:.1f} GB, and the GPU has room for "
                f"{max(0, room) / 1e9:.1f} beside vLLM; lower --gpu-memory-utilization, or choose --master-device host"
            )
        return True

    def _es_find_places(self, folder: Path, ranks: "RankGroup") -> "ParameterMap | None":
        """Map the checkpoint's tensors to the model's parameters. Returns ``None`` if any rank cannot."""
        from esplug.checkpoints.safetensors_shards import read_shapes
        from esplug.vllm_worker.direct_load import ParameterMap, UnmappedError

        places, reason = None, ""
        try:
            places = ParameterMap.find(self.model_runner.get_model(), read_shapes(folder), ranks.rank)
        except UnmappedError as error:
            reason = str(error)
        return places if _all_ranks_can(ranks, reason) else None

    def _es_find_direct_loader(self, places: "ParameterMap", ranks: "RankGroup") -> "DirectLoader | None":
        """Make a direct loader. Returns ``None`` if on any rank it does not write exactly what vLLM has loaded."""
        from esplug.vllm_worker.direct_load import DirectLoader, UnmappedError

        model, dtype = self.model_runner.get_model(), self.model_runner.model_config.dtype
        loader, reason = None, ""
        try:
            loader = DirectLoader(model, self._es_master, places, dtype)
        except UnmappedError as error:
            reason = str(error)
        return loader if _all_ranks_can(ranks, reason) else None

    def es_set_weights(self, member_seed: int | None, scale: float) -> None:
        """Write ``master + scale * eps(member_seed)`` into the model; the master itself without a seed."""
        if self._es_fast_path is not None:
            self._es_fast_path.write(self._es_master, member_seed, scale)
        else:
            dtype = self.model_runner.model_config.dtype
            self._es_reload(self._es_master.perturbed(member_seed, scale, dtype))

    def _es_reload(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        reload(self.model_runner, tensors)

    def es_update(self, seeds: list[int], coefficients: list[float]) -> int:
        """Add ``sum_k coefficients[k] * eps(seeds[k])`` to the master. Returns the new checksum."""
        self._es_master.update(seeds, coefficients)
        return self._es_master.checksum()

    def es_tensor_checksums(self) -> dict[str, int]:
        """Return the checksum of each tensor of the master weights."""
        return self._es_master.tensor_checksums()

    def es_save(self, folder: str, exact: bool) -> tuple[int, str] | None:
        """Write the master weights as safetensors, rounded to the checkpoint's types unless ``exact``.

        Returns the errno and message of an ``OSError``, because exceptions lose their type between the processes of
        tensor parallelism.
        """
        if self.rank == 0 or self._es_places is not None:  # otherwise every rank holds all weights
            try:
                self._es_master.save(Path(folder), exact=exact)
            except OSError as error:
                return error.errno or 0, error.strerror or str(error)
        return None

    def es_take_undefined(self) -> list[int]:
        """Return and reset the number of tokens with NaN or infinite logits: without an adapter, then for each slot."""
        found: list[int] = self._es_undefined.tolist()
        self._es_undefined.zero_()
        return found

    def es_clear_cache(self) -> None:
        """Overwrite the KV cache with zeros."""
        for cache in self.model_runner.kv_caches:
            for tensor in cache if isinstance(cache, list | tuple) else (cache,):
                tensor.zero_()


def _rank_group() -> "RankGroup":
    """Return the tensor-parallel ranks of this engine."""
    from vllm.distributed.parallel_state import get_tp_group

    from esplug.weights.rank_group import RankGroup

    group = get_tp_group()
    return RankGroup(group.cpu_group, group.rank_in_group) if group.world_size > 1 else RankGroup()


def _all_ranks_can(ranks: "RankGroup", reason: str) -> bool:
    """Return whether no rank has a reason against direct loading. Logs this rank's reason."""
    if reason:
        logging.getLogger(__name__).warning("esplug writes weights through vLLM's reload_weights: %s", reason)
    return ranks.sums([bool(reason)]) == [0]


def _keep_freed_memory() -> None:
    """Have glibc reuse the memory of one member's weights for the next member's.

    By default it returns the memory, and the kernel clears every page again: a sixth of a weight switch on a CPU.
    """
    with suppress(OSError, AttributeError):  # not glibc
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
