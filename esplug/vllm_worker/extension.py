"""Worker extension: a class that vLLM mixes into each of its workers. It holds the master weights.

``LLM.collective_rpc`` calls the public ``es_*`` methods. Arguments and results are plain values.
"""

import ctypes
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from esplug.checkpoints.history import CatchUp, CaughtUp
from esplug.checkpoints.safetensors_shards import read_shapes
from esplug.errors import UserError
from esplug.planning.memory import master_bytes
from esplug.planning.placement import gpu_master_room
from esplug.rollout.loop import Rollout
from esplug.rollout.model import PagedModel, unsupported
from esplug.rollout.requests import Answer, Request, Rules
from esplug.utils.text import one_line
from esplug.vllm_worker.cpu_reload import reload_on_cpu
from esplug.vllm_worker.direct_load import REDUNDANT, DirectLoader, ParameterMap, UnmappedError
from esplug.vllm_worker.fingerprint import Fingerprint, fingerprint
from esplug.vllm_worker.heartbeat import Heartbeat
from esplug.vllm_worker.read_tensors import ReadTensors
from esplug.vllm_worker.undefined_logits import watch_logits
from esplug.weights.master import MasterWeights
from esplug.weights.partition import TensorBlock
from esplug.weights.rank_group import RankGroup

VLLM_INTERNALS = {
    "vllm.v1.worker.worker_base:WorkerBase": "rank device model_runner",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner": "get_model() model_config kv_caches "
    "reload_weights(weights_iterator)",
    "vllm.lora.model_manager:LoRAModelManager": "lora_slots",
    "vllm.distributed.parallel_state": "get_tp_group()",
    "vllm.distributed.parallel_state:GroupCoordinator": "cpu_group rank_in_group world_size",
}

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class MasterSetup:
    """What each vLLM worker of an engine needs to load the master weights."""

    model: str  # folder of the base model's checkpoint
    dtype: Literal["float32", "model"]  # the setting master_dtype
    device: Literal["auto", "gpu", "host"]  # the setting master_device
    gpu_share: float  # share of a GPU's memory that the master weights may use
    low_rank: int | None  # rank of the members' perturbations; None if they are full
    rank_cores: list[list[int]]  # CPU cores on which each tensor-parallel rank makes noise
    heartbeat: str  # place of the engine's Heartbeat


class ESWorkerExtension:
    """Holds the master weights and writes a member's perturbed weights into vLLM's model.

    If possible, :class:`.direct_load.DirectLoader` writes them. Each tensor-parallel rank then holds only the master
    weights of its own part of the model. Otherwise every rank holds all of them, and vLLM reloads its model.
    """

    rank: int
    device: torch.device
    model_runner: Any
    _es_places: ParameterMap | None  # None if vLLM reloads
    _es_fast_path: DirectLoader | None
    _es_loaded: Fingerprint  # of the model as vLLM has loaded it
    _es_unread: list[str]
    _es_is_base: bool  # whether the master weights are the base model's, just loaded
    _es_in_host: bool  # whether the master weights are in the host's memory though the model is on a GPU
    _es_master: MasterWeights
    _es_beside: MasterWeights  # of a second model, with the same tensors
    _es_undefined: torch.Tensor
    _es_rollout: Rollout

    def es_prepare(self) -> bool:
        """Prepare the model, and remember its weights as vLLM has loaded them. Returns whether it is on a CPU."""
        model = self.model_runner.get_model()
        self._es_prepare_model(model)
        self._es_loaded, self._es_unread = fingerprint(model, self.model_runner.model_config.dtype), []
        return self.device.type == "cpu"

    def es_load(self, setup: MasterSetup) -> bool:
        """Load the base model's master weights, and choose how to write them. Returns whether directly."""
        self._es_choose_loader(setup)
        self._es_is_base = True
        return self._es_places is not None

    def es_load_without_places(self, setup: MasterSetup) -> None:
        """Load all master weights on every rank, and have vLLM reload its model from now on."""
        self._es_places, self._es_fast_path = None, None
        vars(self).pop("_es_in_host", None)  # whole tensors need more memory than blocks
        self._es_load_master(setup, {}, RankGroup())

    def es_write_and_check(self, member_seed: int | None, scale: float) -> str:
        """Write weights as :meth:`es_set_weights` does. Returns what is wrong with them, or nothing.

        Every parameter must have changed with a member's weights, and be as vLLM has loaded it with the base model's.
        """
        model, reads = self.model_runner.get_model(), ReadTensors()
        try:
            if self._es_fast_path is None and member_seed is not None:
                with reads:
                    self._es_reload(reads.watch(self._es_perturbed(member_seed, scale)))
                self._es_unread = [name for name in reads.unread if not name.endswith(REDUNDANT)]
            else:
                self.es_set_weights(member_seed, scale)
            now = fingerprint(model, self.model_runner.model_config.dtype)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever vLLM's loader raises for a model that it cannot reload
            logging.getLogger(__name__).warning("cannot write weights", exc_info=True)
            return one_line(error)
        for name, value in self._es_loaded.items():
            if member_seed is None and now.get(name) != value:
                return f"{name} is not as vLLM has loaded it"
            if member_seed is not None and now.get(name) == value:
                return f"{name} does not change with a member's weights"
        return ""

    def es_unread(self) -> list[str]:
        """Return the names of the checkpoint's tensors that vLLM does not read when it reloads its model."""
        return self._es_unread

    def es_catch_up(self, setup: MasterSetup, catch_up: CatchUp) -> CaughtUp:
        """Replay the run's updates from the base model's master weights or from saved ones."""
        if not self._es_is_base:
            blocks, ranks = (self._es_places.blocks, _rank_group()) if self._es_places else ({}, RankGroup())
            self._es_load_master(setup, blocks, ranks)
        self._es_is_base = False
        caught_up = self._es_master.catch_up(Path(setup.model), catch_up)
        _keep_freed_memory()
        return caught_up

    def es_load_beside(self, setup: MasterSetup) -> None:
        """Load the weights of a second model, whose configuration and tensors are those of the first."""
        master, blocks = self._es_master, self._es_places.blocks if self._es_places else {}
        self._es_load_master(setup, blocks, _rank_group() if self._es_places else RankGroup())
        self._es_beside, self._es_master = self._es_master, master

    def es_set_beside(self) -> None:
        """Write the second model's weights into vLLM's model."""
        master, self._es_master = self._es_master, self._es_beside
        try:
            self.es_set_weights(None, 0.0)
        finally:
            self._es_master = master

    def _es_prepare_model(self, model: torch.nn.Module) -> None:
        """Have the model count undefined logits and, on a CPU, use C kernels."""
        slots = getattr(getattr(model, "lora_manager", None), "lora_slots", 0)
        self._es_undefined = torch.zeros(1 + slots, dtype=torch.int64, device=self.device)
        watch_logits(model, self._es_undefined)
        if self.device.type == "cpu":
            from esplug.vllm_worker.cpu_layers import use_c_kernels

            use_c_kernels(model)

    def _es_choose_loader(self, setup: MasterSetup) -> None:
        """Load the master weights, and choose the direct loader if it works on all ranks."""
        model, ranks, loader = self.model_runner.get_model(), _rank_group(), None
        shapes, dtype = read_shapes(Path(setup.model)), self.model_runner.model_config.dtype
        places = _on_all_ranks(ranks, ParameterMap.find, model, shapes, ranks.rank)
        if places is not None:
            self._es_load_master(setup, places.blocks, ranks)
            loader = _on_all_ranks(ranks, DirectLoader, model, self._es_master, places, dtype)
        if loader is None:
            self.es_load_without_places(setup)
        else:
            self._es_places, self._es_fast_path = places, loader

    def _es_load_master(self, setup: MasterSetup, blocks: Mapping[str, TensorBlock], ranks: RankGroup) -> None:
        """Load the base model's weights: this rank's ``blocks``, or all if there are none."""
        vars(self).pop("_es_master", None)  # there may be no memory for two
        if not hasattr(self, "_es_in_host"):  # the first time
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

    def _es_keep_in_host(self, needed: int, share: float, choice: str, ranks: RankGroup) -> bool:
        """Return whether to keep the master weights, ``needed`` bytes on this rank, in the host's memory.

        With ``choice`` (``master_device``) ``auto``, they go to the GPU if they fit into its ``share`` on all ranks.

        Raises:
            UserError: ``choice`` is ``gpu``, and they do not fit.
        """
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

    def es_set_weights(self, member_seed: int | None, scale: float) -> None:
        """Write ``master + scale * eps(member_seed)`` into the model; the master itself without a seed."""
        if self._es_fast_path is not None:
            self._es_fast_path.write(self._es_master, member_seed, scale)
        else:
            self._es_reload(self._es_perturbed(member_seed, scale))

    def _es_perturbed(self, member_seed: int | None, scale: float) -> Iterator[tuple[str, torch.Tensor]]:
        """Iterate over a member's weights for vLLM to load, which rounds them to its parameters' types."""
        dtype = self.model_runner.model_config.dtype
        if torch.float32 in self._es_master.dtypes.values():  # vLLM keeps some parameters in float32
            dtype = torch.float32
        return self._es_master.perturbed(member_seed, scale, dtype)

    def _es_reload(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Have vLLM load tensors by name. This works for every model, but takes longer than the direct loader."""
        if self.device.type == "cpu":
            reload_on_cpu(self.model_runner, tensors)
        else:
            self.model_runner.reload_weights(weights_iterator=tensors)

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

    def es_prepare_rollout(self, heartbeat: str) -> str:
        """Prepare the rollout loop. Returns why it cannot answer with this model, or nothing."""
        why = unsupported(self.model_runner)
        if not why:
            self._es_rollout = Rollout(PagedModel(self.model_runner), Heartbeat(heartbeat).beat)
        return why

    def es_roll_out(self, requests: Sequence[Request], rules: Rules) -> tuple[list[Answer], list[int]]:
        """Answer requests with the rollout loop. Returns also the number of undefined tokens of each adapter slot."""
        return self._es_rollout.answer(requests, rules)

    def es_clear_cache(self) -> None:
        """Overwrite the KV cache with zeros."""
        for cache in self.model_runner.kv_caches:
            for tensor in cache if isinstance(cache, list | tuple) else (cache,):
                tensor.zero_()


def _rank_group() -> RankGroup:
    """Return the tensor-parallel ranks of this engine."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    return RankGroup(group.cpu_group, group.rank_in_group) if group.world_size > 1 else RankGroup()


def _on_all_ranks(ranks: RankGroup, make: Callable[..., Made], *arguments: Any) -> Made | None:
    """Make a part of the direct loader. Returns ``None`` if any rank cannot; logs why this one cannot."""
    made = None
    try:
        made = make(*arguments)
    except UnmappedError as error:
        logging.getLogger(__name__).warning("esplug writes weights through vLLM's reload_weights: %s", error)
    return made if ranks.sums([made is None]) == [0] else None


def _keep_freed_memory() -> None:
    """Have glibc reuse the memory of one member's weights for the next member's.

    By default it returns the memory, and the kernel clears every page again: a sixth of a weight switch on a CPU.
    """
    with suppress(OSError, AttributeError):  # not glibc
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
