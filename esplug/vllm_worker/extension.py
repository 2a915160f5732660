"""What esplug adds to each vLLM worker process. vLLM mixes this class into its own worker.

Only ``es_*`` methods, called through ``LLM.collective_rpc``. Arguments and results are plain values.
"""

import ctypes
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from esplug.planning.memory import master_bytes
from esplug.planning.placement import gpu_master_room
from esplug.vllm_worker.heartbeat import Heartbeat

if TYPE_CHECKING:
    from esplug.checkpoints.history import CatchUp, CaughtUp
    from esplug.vllm_worker.direct_load import DirectLoader, ParameterMap
    from esplug.weights.master import MasterWeights
    from esplug.weights.partition import TensorBlock
    from esplug.weights.rank_group import RankGroup

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt


class ESWorkerExtension:
    """Holds the master weights and writes a member's perturbed weights into vLLM's model.

    Weights enter by :class:`.direct_load.DirectLoader` where that is possible, and each tensor-parallel rank then has
    those of its own part of the model alone. Elsewhere every rank has all, and they enter through vLLM's own
    ``reload_weights`` with checkpoint-named tensors, which takes care of fused projections and shards.
    """

    rank: int
    device: torch.device
    model_runner: Any
    _es_places: "ParameterMap | None"  # None also where weights enter the long way
    _es_fast_path: "DirectLoader | None"
    _es_in_host: bool  # whether master weights are in the host's memory though a GPU computes
    _es_master: "MasterWeights"
    _es_undefined: torch.Tensor

    def es_catch_up(
        self,
        folder: str,
        master_dtype: Literal["float32", "model"],
        master_device: Literal["auto", "gpu", "host"],
        master_room: float,
        low_rank: int | None,
        rank_cores: list[list[int]],
        heartbeat: str,
        catch_up: "CatchUp",
    ) -> "CaughtUp":
        """Read the checkpoint in ``folder`` as master weights, and from there get to the run's present ones.

        ``master_device`` is the setting of that name, ``master_room`` the share of a GPU that the master may take,
        ``low_rank`` the rank of the members' noise if it is not full. ``rank_cores`` are the CPU cores on which each
        tensor-parallel rank may make noise, and ``heartbeat`` is the place of the engine's
        :class:`esplug.vllm_worker.heartbeat.Heartbeat`.
        """
        # numba, which the kernels need, must not be imported before vLLM's CPU engine has started.
        from esplug.weights.master import MasterWeights
        from esplug.weights.rank_group import RankGroup

        cores, beat, ranks = rank_cores[self.rank], Heartbeat(heartbeat).beat, _ranks()

        def load(blocks: "Mapping[str, TensorBlock]", ranks: "RankGroup") -> None:
            vars(self).pop("_es_master", None)  # there may be no room for two
            if starting:
                needed = master_bytes(Path(folder), master_dtype, blocks)
                self._es_in_host = self._es_keep_in_host(needed, master_room, master_device, ranks)
            where: dict[str, Any] = {"device": self.device, "in_host": self._es_in_host, "blocks": blocks}
            how: dict[str, Any] = {"threads": len(cores), "cores": cores, "beat": beat, "low_rank": low_rank}
            self._es_master = MasterWeights.load(Path(folder), master_dtype, ranks=ranks, **how, **where)

        starting = not hasattr(self, "_es_places")
        if starting:
            self._es_watch_and_speed_up(self.model_runner.get_model())
            places, fast_path = self._es_find_places(Path(folder), ranks), None
            if places is not None:
                load(places.blocks, ranks)
                fast_path = self._es_find_fast_path(places, ranks)
            if fast_path is None:
                places = None
                load({}, RankGroup())
            self._es_places, self._es_fast_path = places, fast_path
        elif self._es_places is not None:
            load(self._es_places.blocks, ranks)
        else:
            load({}, RankGroup())
        caught_up = self._es_master.catch_up(Path(folder), catch_up)
        _keep_freed_memory()
        return caught_up

    def _es_keep_in_host(self, needed: int, share: float, choice: str, ranks: "RankGroup") -> bool:
        """Choose where the master weights are kept: on the GPU if they fit into its share on all ranks, or must."""
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

    def _es_watch_and_speed_up(self, model: torch.nn.Module) -> None:
        slots = getattr(getattr(model, "lora_manager", None), "lora_slots", 0)
        self._es_undefined = torch.zeros(1 + slots, dtype=torch.int64, device=self.device)
        _watch_logits(model, self._es_undefined)
        if self.device.type == "cpu":
            from esplug.vllm_worker.cpu_layers import use_c_kernels

            use_c_kernels(model)

    def _es_find_places(self, folder: Path, ranks: "RankGroup") -> "ParameterMap | None":
        from esplug.checkpoints.safetensors_shards import read_shapes
        from esplug.vllm_worker.direct_load import ParameterMap, UnmappedError

        places, reason = None, ""
        try:
            places = ParameterMap.find(self.model_runner.get_model(), read_shapes(folder), ranks.rank)
        except UnmappedError as error:
            reason = str(error)
        return places if _all_can(ranks, reason) else None

    def _es_find_fast_path(self, places: "ParameterMap", ranks: "RankGroup") -> "DirectLoader | None":
        """Compare what the fast path writes with what vLLM has loaded; unless that is the same, do without."""
        from esplug.vllm_worker.direct_load import DirectLoader, UnmappedError

        model, dtype = self.model_runner.get_model(), self.model_runner.model_config.dtype
        fast_path, reason = None, ""
        try:
            fast_path = DirectLoader(model, self._es_master, places, dtype)
        except UnmappedError as error:
            reason = str(error)
        return fast_path if _all_can(ranks, reason) else None

    def es_set_weights(self, member_seed: int | None, scale: float) -> None:
        """Give the model ``master + scale * eps(member_seed)``; without a seed, the master itself."""
        if self._es_fast_path is not None:
            self._es_fast_path.write(self._es_master, member_seed, scale)
        else:
            dtype = self.model_runner.model_config.dtype
            self._es_reload(self._es_master.perturbed(member_seed, scale, dtype))

    def _es_reload(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Give the model all tensors of a checkpoint, whatever the model and however it is spread over processes."""
        self.model_runner.reload_weights(weights_iterator=tensors)
        _repack_output_embeddings(self.model_runner.get_model())

    def es_update(self, seeds: list[int], coefficients: list[float]) -> int:
        """Add ``sum_k coefficients[k] * eps(seeds[k])`` to the master. Returns the new checksum."""
        self._es_master.update(seeds, coefficients)
        return self._es_master.checksum()

    def es_tensor_checksums(self) -> dict[str, int]:
        """Return the checksum of each tensor of the master weights."""
        return self._es_master.tensor_checksums()

    def es_save(self, folder: str, exact: bool) -> tuple[int, str] | None:
        """Write the master weights as safetensors, rounded to the checkpoint's types unless ``exact``.

        Returns the number and name of the system's error where they cannot be written: between the processes of
        tensor parallelism no exception keeps its type.
        """
        if self.rank == 0 or self._es_places is not None:  # else every rank has all of them
            try:
                self._es_master.save(Path(folder), exact=exact)
            except OSError as error:
                return error.errno or 0, error.strerror or str(error)
        return None

    def es_take_undefined(self) -> list[int]:
        """Return for how many tokens the model gave NaN or infinity since this was last asked.

        First without an adapter, then with that of each slot.
        """
        found: list[int] = self._es_undefined.tolist()
        self._es_undefined.zero_()
        return found

    def es_clear_cache(self) -> None:
        """Overwrite the KV cache with zeros."""
        for cache in self.model_runner.kv_caches:
            for tensor in cache if isinstance(cache, list | tuple) else (cache,):
                tensor.zero_()


def _ranks() -> "RankGroup":
    """Return the tensor-parallel processes that this one is part of."""
    from vllm.distributed.parallel_state import get_tp_group

    from esplug.weights.rank_group import RankGroup

    group = get_tp_group()
    return RankGroup(group.cpu_group, group.rank_in_group) if group.world_size > 1 else RankGroup()


def _all_can(ranks: "RankGroup", reason: str) -> bool:
    """Say whether no rank has a reason why its weights cannot go the short way, and log this one's."""
    if reason:
        logging.getLogger(__name__).warning("esplug writes weights through vLLM's reload_weights: %s", reason)
    return ranks.sums([bool(reason)]) == [0]


def _keep_freed_memory() -> None:
    """Have the C library reuse the memory of a member's weights for the next one's.

    It would otherwise give it back, and the kernel would clear every page again: a sixth of a switch on the CPU.
    """
    with suppress(OSError, AttributeError):  # not glibc
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _watch_logits(model: torch.nn.Module, undefined: torch.Tensor) -> None:
    """Have ``model`` count, in ``undefined``, the tokens whose logits hold NaN or infinity: by their adapter."""
    compute: Any = model.compute_logits
    manager: Any = getattr(model, "lora_manager", None)
    adapters = None if manager is None else next(iter(manager.punica_wrapper_mapping.values()))
    count = count_undefined
    if undefined.is_cuda:
        from esplug.vllm_worker.logits_kernel import count_undefined as count

    def watched(*arguments: Any, **named: Any) -> Any:
        logits = compute(*arguments, **named)
        if logits is not None:  # with tensor parallelism, some ranks get none
            slots = None
            if adapters is not None and len(adapters.sampler_indices) == len(logits):
                slots = adapters.sampler_indices
            count(logits, slots, undefined)
        return logits

    vars(model)["compute_logits"] = watched


def count_undefined(logits: torch.Tensor, slots: torch.Tensor | None, counts: torch.Tensor) -> None:
    """Count them on a CPU; see :func:`esplug.vllm_worker.logits_kernel.count_undefined`."""
    wrong = (~torch.isfinite(logits.amax(dim=-1))).to(counts.dtype)
    counts.index_add_(0, torch.zeros_like(wrong) if slots is None else slots + 1, wrong)


@torch.no_grad()
def _repack_output_embeddings(model: torch.nn.Module) -> None:
    """Renew the packed copy of tied output embeddings, which vLLM's CPU backend leaves stale on reload."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding) and hasattr(layer, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
