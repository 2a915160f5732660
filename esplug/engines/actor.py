"""One vLLM engine in a Ray actor: answers prompts with a member's weights and applies updates from seeds."""

import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from esplug.checkpoints.history import CatchUp, CaughtUp
from esplug.engines.messages import Completion, EngineSettings, Generation, Sampling, Weights, Work
from esplug.errors import UserError
from esplug.planning.adapter_sizes import adapter_options
from esplug.planning.memory import gpu_footprint
from esplug.planning.placement import CPU_MEMORY_SHARE, GPU_KV_CACHE_MIN, GpuFootprint
from esplug.planning.shared_prefix import MIN_PREFIX_TOKENS, common_prefix
from esplug.utils.cores import usable_cores
from esplug.utils.free_memory import free_memory
from esplug.utils.text import one_line
from esplug.vllm_worker.detokenizer import Detokenizer, Stops
from esplug.vllm_worker.heartbeat import Heartbeat
from esplug.vllm_worker.scheduler_patch import SchedulerPatch

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

Method = TypeVar("Method", bound=Callable[..., Any])
#: Cores of the driver's or an engine's machine, as given to ``sched_setaffinity``.
Cores = list[int]
LOW_RANK_EXTENSION = "esplug.vllm_worker.low_rank_extension.LowRankWorkerExtension"


def _at_work(method: Method) -> Method:
    """Let an engine's heart beat from the beginning to the end of a method."""

    @functools.wraps(method)
    def run(self: "Engine", *arguments: Any, **named: Any) -> Any:
        self._heartbeat.beat()
        try:
            return method(self, *arguments, **named)
        finally:
            self._heartbeat.rest()

    return cast(Method, run)


class Engine:
    """The Ray actor. Made idle, so that all engines can be placed before any loads a model.

    Everything but :meth:`pulse`, which has a thread of its own, runs in one thread.

    Attributes:
        worker_extension: what is added to vLLM's workers, as a dotted name.
        light_bookkeeping: whether vLLM's scheduler is spared what nobody looks at.
    """

    worker_extension = "esplug.vllm_worker.extension.ESWorkerExtension"
    light_bookkeeping = True

    def __init__(self, log_path: str | None) -> None:
        if log_path:
            _redirect_output(Path(log_path))
        self._llm: Any = None
        self._weights: tuple[Weights, ...] = ()  # none while nobody knows which
        self._heartbeat = Heartbeat()
        self._low_rank: int | None = None
        self._prefix_caching = True
        self._bookkeeping: SchedulerPatch | None = None

    def location(self) -> tuple[str, int]:
        """Return this node's id and its free memory in bytes."""
        import ray

        return ray.get_runtime_context().get_node_id(), free_memory()

    def pulse(self) -> float:
        """Return the seconds since work last made progress; 0 without work, and while the model is being loaded."""
        return self._heartbeat.age()

    def start(
        self,
        settings: EngineSettings,
        share: tuple[int, int],
        most_cores: int | None,
        kv_cache_bytes: int | None,
        catch_up: CatchUp,
    ) -> CaughtUp:
        """Load the model and the master weights, and catch up with the run.

        Args:
            settings: equal for all engines.
            share: which of how many equal shares of this machine's cores is this engine's alone, on a CPU.
            most_cores: take no more of them.
            kv_cache_bytes: size of the KV cache; ``None`` lets vLLM take its share of the GPU.
            catch_up: what the run has done so far.
        """
        self._low_rank, self._prefix_caching = settings.low_rank, settings.prefix_caching
        cores = _own_cores(*share)[:most_cores]
        ranks = settings.tensor_parallel_size
        rank_cores = [cores[rank::ranks] or cores for rank in range(ranks)]
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the actor is the process
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        if settings.device == "cpu":
            if ranks == 1:  # one process: the threads that torch makes inherit this
                os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
                os.environ["OMP_NUM_THREADS"] = str(len(cores))
                os.sched_setaffinity(0, cores)
            else:
                os.environ.pop("OMP_NUM_THREADS", None)
                bind = "|".join(",".join(map(str, part)) for part in rank_cores)
                os.environ["VLLM_CPU_OMP_THREADS_BIND"] = bind
        from vllm import LLM

        share_of_memory = memory_share(settings)
        extra: dict[str, Any] = {}
        if settings.low_rank:
            extra = adapter_options(Path(settings.model), settings.low_rank, settings.members_at_once, settings.device)
        if settings.engines_per_gpu > 1:
            extra |= {"kv_cache_memory_bytes": _kv_cache_beside_others(settings, share_of_memory)}
        if settings.device == "cpu":  # the smallest block there, so that short shared prefixes are cached too
            extra |= {"kv_cache_memory_bytes": kv_cache_bytes, "block_size": MIN_PREFIX_TOKENS, "enforce_eager": True}
        self._llm = _made(
            LLM,
            settings,
            model=settings.model,
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            tensor_parallel_size=ranks,
            distributed_executor_backend="mp" if ranks > 1 else None,  # within a placement group it would be Ray
            enable_prefix_caching=settings.prefix_caching,
            gpu_memory_utilization=share_of_memory / settings.engines_per_gpu,
            worker_extension_cls=LOW_RANK_EXTENSION if settings.low_rank else self.worker_extension,
            generation_config="vllm",
            seed=0,
            **extra,
        )
        if self.light_bookkeeping:
            self._bookkeeping = SchedulerPatch(self._llm.llm_engine.engine_core.engine_core.scheduler)
        step = self._llm.llm_engine.step
        self._llm.llm_engine.step = lambda: self._step(step)
        room = (1 - share_of_memory) / settings.engines_per_gpu
        master = settings.master_dtype, settings.master_device, room
        self._load_master = (settings.model, *master, settings.low_rank, rank_cores, self._heartbeat.place)
        return self.catch_up(catch_up)

    @_at_work
    def catch_up(self, catch_up: CatchUp) -> CaughtUp:
        """Read the base model's weights, and from them or from saved ones replay the run's updates."""
        self._weights = ()
        self._llm.reset_prefix_cache()
        found: list[CaughtUp] = self._llm.collective_rpc("es_catch_up", args=(*self._load_master, catch_up))
        if len({(state.base, state.checksum) for state in found}) != 1:
            raise RuntimeError(f"tensor-parallel ranks of one engine differ after loading: {found}")
        return found[0]

    def _step(self, step: Callable[[], Any]) -> Any:
        self._heartbeat.beat()
        return step()

    @_at_work
    def generate(
        self,
        weights: Sequence[Weights],
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
    ) -> list[Generation]:
        """Answer ``prompts`` (token ids), each with its own seed, with each of ``weights``; several have low rank.

        The answers depend on these arguments and the master weights alone, not on what was answered before.
        """
        from vllm import SamplingParams, TokensPrompt

        began, started, count = time.time(), time.perf_counter(), len(weights)
        switch_seconds = 0.0
        if tuple(weights) != self._weights:
            self._weights = ()
            self._write(weights)
            self._weights = tuple(weights)
            switch_seconds = time.perf_counter() - started
        adapters = self._adapters(weights)
        self._llm.reset_prefix_cache()
        self._cache_shared_prefix(prompts, adapters)
        stops = self._end_at_texts(sampling)
        as_it_goes = not self._detokenizer.works or bool(sampling.stop and stops is None)
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts] * count,
            [
                SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_tokens,
                    stop=list(sampling.stop) if as_it_goes else [],
                    stop_token_ids=list(sampling.stop_token_ids),
                    include_stop_str_in_output=True,
                    detokenize=as_it_goes,
                    seed=seed if sampling.temperature > 0 else None,
                )
                for seed in seeds
            ]
            * count,
            lora_request=[adapter for adapter in adapters for _ in prompts],
            use_tqdm=False,
        )
        completions = []
        for output in outputs:
            self._heartbeat.beat()
            (answer,) = output.outputs
            text = answer.text if as_it_goes else self._detokenizer.text(output.prompt_token_ids, answer.token_ids)
            text = stops.cut(text) if stops else text
            completions.append(Completion(text, len(answer.token_ids), answer.finish_reason == "stop"))
        undefined = self._undefined(adapters)
        work = Work(-1, began, switch_seconds, time.perf_counter() - started - switch_seconds, count)
        return [
            Generation(completions[i * len(prompts) : (i + 1) * len(prompts)], (work,), undefined[i])
            for i in range(count)
        ]

    @functools.cached_property
    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(self._llm.get_tokenizer())

    def _end_at_texts(self, sampling: Sampling) -> Stops | None:
        """Have the scheduler end answers at texts. Returns what finds them, or ``None`` if that is left to vLLM."""
        if self._bookkeeping is None:
            return None
        wanted = bool(sampling.stop) and self._bookkeeping.answers
        self._bookkeeping.stops = self._detokenizer.stops(sampling.stop) if wanted else None
        return self._bookkeeping.stops

    def _write(self, weights: Sequence[Weights]) -> None:
        """Give the model these weights."""
        if self._low_rank and weights[0].member_seed is not None:
            members = [(each.member_seed, each.scale) for each in weights]
            self._llm.collective_rpc("es_set_members", args=(members,))
        else:
            (alone,) = weights
            self._llm.collective_rpc("es_set_weights", args=(alone.member_seed, alone.scale))

    def _adapters(self, weights: Sequence[Weights]) -> "list[LoRARequest | None]":
        """Return what tells vLLM which member's adapter to answer with; ``None`` for the model alone."""
        if not self._low_rank or weights[0].member_seed is None:
            return [None]
        from vllm.lora.request import LoRARequest

        return [LoRARequest(f"member {slot}", slot, "made from its seed") for slot in range(1, len(weights) + 1)]

    def _undefined(self, adapters: "Sequence[LoRARequest | None]") -> list[int]:
        """Return for how many tokens the model gave NaN or infinity, with each adapter."""
        counts = [sum(each) for each in zip(*self._llm.collective_rpc("es_take_undefined"), strict=True)]
        if any(counts):  # which the cache would hand on, as 0 x NaN is NaN
            self._llm.collective_rpc("es_clear_cache")
            self._llm.reset_prefix_cache()
            self._weights = ()
        return [counts[adapter.lora_int_id if adapter else 0] for adapter in adapters]

    def _cache_shared_prefix(self, prompts: Sequence[Sequence[int]], adapters: "Sequence[LoRARequest | None]") -> None:
        """Compute what all prompts begin with once; scheduled together, each would compute it for itself."""
        from vllm import SamplingParams, TokensPrompt

        if self._prefix_caching and (beginning := common_prefix(prompts)):
            once = SamplingParams(temperature=0.0, max_tokens=1)
            prefixes = [TokensPrompt(prompt_token_ids=beginning)] * len(adapters)
            self._llm.generate(prefixes, once, lora_request=list(adapters), use_tqdm=False)

    @_at_work
    def update(self, seeds: list[int], coefficients: list[float]) -> int:
        """Move the master weights. Returns their new checksum."""
        self._weights = ()
        return self._same("es_update", seeds, coefficients)

    @_at_work
    def save(self, folder: str, exact: bool) -> None:
        """Write the master weights to ``folder`` as safetensors, in the checkpoint's types or exactly as they are.

        What an engine that died in the middle has left there is removed.

        Raises:
            OSError: they could not be written.
        """
        for left in (*Path(folder).glob("*.safetensors*"), *Path(folder).glob(".tmp*")):
            left.unlink()
        for error in filter(None, self._llm.collective_rpc("es_save", args=(folder, exact))):
            raise OSError(*error, folder)

    @_at_work
    def tensor_checksums(self) -> dict[str, int]:
        """Return the checksum of each tensor of the master weights."""
        checksums: dict[str, int] = self._llm.collective_rpc("es_tensor_checksums")[0]
        return checksums

    def _same(self, method: str, *args: Any) -> int:
        """Call a worker method that returns a checksum, and insist that all ranks agree."""
        checksums = {int(value) for value in self._llm.collective_rpc(method, args=args)}
        if len(checksums) != 1:
            raise RuntimeError(f"tensor-parallel ranks of one engine differ after {method}: {sorted(checksums)}")
        return checksums.pop()


def _own_cores(slot: int, shares: int) -> Cores:
    """Return one of so many equal shares of this machine's usable cores; all of them where there are too few."""
    cores = usable_cores()
    each = max(1, len(cores) // shares)
    return cores[slot * each : (slot + 1) * each] or cores


def _made(kind: Callable[..., Any], settings: EngineSettings, **options: Any) -> Any:
    """Make vLLM's engine.

    Raises:
        UserError: it has no adapters for this model.
    """
    try:
        return kind(**options)
    except ValueError as error:
        if settings.low_rank and "lora" in str(error).lower():
            raise UserError(
                f"--perturbation low-rank: not for this model ({one_line(error)}); choose --perturbation full"
            ) from error
        raise


def _on_gpu(settings: EngineSettings) -> tuple[GpuFootprint, int]:
    """Return what an engine takes of a GPU, and the memory of that."""
    import torch

    model, members = Path(settings.model), settings.members_at_once
    kinds = settings.dtype, settings.master_dtype, settings.low_rank
    return gpu_footprint(model, *kinds, members, settings.tensor_parallel_size), torch.cuda.mem_get_info()[1]


def memory_share(settings: EngineSettings) -> float:
    """Return the share of a GPU's memory, or on a CPU of what is free, that engines take: the user's if given."""
    if settings.memory_share:
        return settings.memory_share
    if settings.device == "cpu":
        return CPU_MEMORY_SHARE
    taken, total = _on_gpu(settings)
    return taken.memory_share(total, settings.engines_per_gpu, settings.master_device)


def _kv_cache_beside_others(settings: EngineSettings, share: float) -> int:
    """Size the KV cache of an engine that shares its GPU, where vLLM would take its neighbours' memory for its own.

    Raises:
        UserError: there is not enough.
    """
    taken, total = _on_gpu(settings)
    left = taken.kv_cache(total, share / settings.engines_per_gpu)
    if left < GPU_KV_CACHE_MIN:
        raise UserError(
            f"--n-vllm-engines-per-gpu {settings.engines_per_gpu}: each engine may take "
            f"{share * total / settings.engines_per_gpu / 1e9:.1f} GB, "
            "which is too little for this model; choose fewer, or more --gpu-memory-utilization"
        )
    return left


def _redirect_output(path: Path) -> None:
    """Send everything this process and its children print to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)
