"""Engine actor: one vLLM that answers prompts with a member's weights and applies updates from seeds."""

import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from esplug.checkpoints.history import CatchUp, CaughtUp
from esplug.engines.engine_errors import of_configuration, reason, with_plain_errors
from esplug.engines.messages import Completion, EngineSettings, Generation, Sampling, Weights, Work
from esplug.engines.usage import EngineUsage, UsageMeter
from esplug.engines.vllm_options import llm_options, memory_share, rank_cores, set_environment
from esplug.errors import UserError
from esplug.planning.shared_prefix import common_prefix
from esplug.utils.free_memory import free_memory
from esplug.vllm_worker.detokenizer import Detokenizer, Stops
from esplug.vllm_worker.heartbeat import Heartbeat, beat_every_step
from esplug.vllm_worker.scheduler_patch import SchedulerPatch, scheduler_of
from esplug.vllm_worker.start_proof import load_and_prove

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

Method = TypeVar("Method", bound=Callable[..., Any])
LOW_RANK_EXTENSION = "esplug.vllm_worker.low_rank_extension.LowRankWorkerExtension"
PLAIN_EXTENSION = "esplug.vllm_worker.plain_extension.PlainWorkerExtension"


def _with_heartbeat(method: Method) -> Method:
    """Start the engine's heartbeat before a method, and stop it afterwards. Its exceptions become plain ones."""

    @with_plain_errors
    @functools.wraps(method)
    def run(self: "Engine", *arguments: Any, **named: Any) -> Any:
        self._heartbeat.beat()
        try:
            return method(self, *arguments, **named)
        finally:
            self._heartbeat.rest()

    return cast(Method, run)


class Engine:
    """The Ray actor. It is created idle, so that all engines can be placed before any of them loads a model.

    All methods run in one thread, except for :meth:`pulse` and :meth:`usage`, which have their own.

    Attributes:
        worker_extension: class that vLLM adds to its workers, as a dotted name.
        light_bookkeeping: whether to patch vLLM's scheduler to do less work for each token.
    """

    worker_extension = "esplug.vllm_worker.extension.ESWorkerExtension"
    light_bookkeeping = True

    def __init__(self, log_path: str | None) -> None:
        if log_path:
            _redirect_output(Path(log_path))
        self._llm: Any = None
        self._weights: tuple[Weights, ...] = ()  # in the model; empty if unknown
        self._heartbeat = Heartbeat()
        self._low_rank: int | None = None
        self._prefix_caching = True
        self._scheduler_patch: SchedulerPatch | None = None

    def location(self) -> tuple[str, int]:
        """Return this node's id and its free memory in bytes."""
        import ray

        return ray.get_runtime_context().get_node_id(), free_memory()

    def pulse(self) -> float:
        """Return the seconds since work last made progress; 0 without work, and while the model is being loaded."""
        return self._heartbeat.age()

    def usage(self, seconds: float) -> EngineUsage:
        """Return the usage of memory and GPUs in the last ``seconds``."""
        return self._meter.usage(seconds)

    @with_plain_errors
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
            share: on a CPU, the index of this engine's share of the machine's cores, and the number of equal shares.
            most_cores: cores to use at most.
            kv_cache_bytes: size of the KV cache; ``None`` lets vLLM use its share of the GPU.
            catch_up: updates of the run so far.

        Raises:
            UserError: vLLM refuses the model or a setting, or the model does not hold the weights that esplug writes.
        """
        self._low_rank, self._prefix_caching = settings.low_rank, settings.prefix_caching
        self._meter = UsageMeter(os.environ.get("CUDA_VISIBLE_DEVICES", "") if settings.device == "cuda" else "")
        cores = rank_cores(share, most_cores, settings.tensor_parallel_size)
        set_environment(settings.device, cores)  # vLLM reads it when it is imported
        from vllm import LLM

        from esplug.vllm_worker.extension import MasterSetup

        gpu_share = (1 - memory_share(settings)) / settings.engines_per_gpu
        extension = PLAIN_EXTENSION
        if settings.writes_weights:
            extension = LOW_RANK_EXTENSION if settings.low_rank else self.worker_extension
        options = llm_options(settings, kv_cache_bytes) | {"worker_extension_cls": extension}
        self._llm = _create_llm(LLM, settings, options)
        master = settings.master_dtype, settings.master_device, gpu_share
        self._master_setup = MasterSetup(settings.model, *master, settings.low_rank, cores, self._heartbeat.place)
        unread = load_and_prove(self._llm, self._master_setup) if settings.writes_weights else ()
        if settings.beside:
            self._llm.collective_rpc("es_load_beside", args=(replace(self._master_setup, model=settings.beside),))
        if self.light_bookkeeping:
            self._scheduler_patch = SchedulerPatch(scheduler_of(self._llm))
        beat_every_step(self._llm, self._heartbeat)
        return replace(self.catch_up(catch_up), unread=unread)

    @_with_heartbeat
    def catch_up(self, catch_up: CatchUp) -> CaughtUp:
        """Read the base model's or saved weights, and replay the run's updates from there.

        Raises:
            RuntimeError: tensor-parallel ranks disagree about the result.
        """
        self._weights = ()
        self._llm.reset_prefix_cache()
        found: list[CaughtUp] = self._llm.collective_rpc("es_catch_up", args=(self._master_setup, catch_up))
        if len({(state.base, state.checksum) for state in found}) != 1:
            raise RuntimeError(f"tensor-parallel ranks of one engine differ after loading: {found}")
        return found[0]

    @_with_heartbeat
    def generate(
        self,
        weights: Sequence[Weights],
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
    ) -> list[Generation]:
        """Answer ``prompts`` (token ids), each with its own seed, with each of ``weights``: one, or low-rank members.

        The answers depend only on these arguments and the master weights, not on earlier calls.
        """
        from vllm import TokensPrompt

        began, started, count, switch_seconds = time.time(), time.perf_counter(), len(weights), 0.0
        if tuple(weights) != self._weights:
            self._weights = ()
            self._write(weights)
            self._weights = tuple(weights)
            switch_seconds = time.perf_counter() - started
        adapters = self._adapters(weights)
        self._llm.reset_prefix_cache()
        self._cache_shared_prefix(prompts, adapters)
        stops = self._stop_in_scheduler(sampling)
        vllm_detokenizes = not self._detokenizer.works or bool(sampling.stop and stops is None)
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts] * count,
            _sampling_params(sampling, seeds, vllm_detokenizes) * count,
            lora_request=[adapter for adapter in adapters for _ in prompts],
            use_tqdm=False,
        )
        completions = []
        for output in outputs:
            self._heartbeat.beat()
            (answer,) = output.outputs
            text = self._text(output, sampling, vllm_detokenizes)
            text = stops.cut(text) if stops else text
            ids = tuple(_without_end(answer, sampling)) if sampling.return_ids else ()
            completions.append(Completion(text, len(answer.token_ids), answer.finish_reason == "stop", ids))
        undefined = self._take_undefined(adapters)
        work = Work(-1, began, switch_seconds, time.perf_counter() - started - switch_seconds, count)
        return [
            Generation(completions[i * len(prompts) : (i + 1) * len(prompts)], (work,), undefined[i])
            for i in range(count)
        ]

    def _text(self, output: Any, sampling: Sampling, vllm_detokenizes: bool) -> str:
        """Return the text of vLLM's output, without the end token, which need not be a special one."""
        (answer,) = output.outputs
        ids = _without_end(answer, sampling)
        if not vllm_detokenizes:
            return self._detokenizer.text(output.prompt_token_ids, ids)
        text: str = answer.text
        ended = len(ids) < len(answer.token_ids)
        return text.removesuffix(self._llm.get_tokenizer().decode([answer.token_ids[-1]])) if ended else text

    @functools.cached_property
    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(self._llm.get_tokenizer())

    def _stop_in_scheduler(self, sampling: Sampling) -> Stops | None:
        """Have the patched scheduler stop answers at ``sampling.stop``. Returns ``None`` if vLLM must do it."""
        if self._scheduler_patch is None:
            return None
        wanted = bool(sampling.stop) and self._scheduler_patch.whole_answers
        self._scheduler_patch.stops = self._detokenizer.stops(sampling.stop) if wanted else None
        return self._scheduler_patch.stops

    def _write(self, weights: Sequence[Weights]) -> None:
        """Write weights into the model: members of low rank into its adapters, all others into its parameters."""
        if self._low_rank and weights[0].member_seed is not None:
            members = [(each.member_seed, each.scale) for each in weights]
            self._llm.collective_rpc("es_set_members", args=(members,))
        else:
            (alone,) = weights
            if alone.beside:
                self._llm.collective_rpc("es_set_beside")
            else:
                self._llm.collective_rpc("es_set_weights", args=(alone.member_seed, alone.scale))

    def _adapters(self, weights: Sequence[Weights]) -> "list[LoRARequest | None]":
        """Return vLLM's request for each member's adapter; ``None`` for the model without an adapter."""
        if not self._low_rank or weights[0].member_seed is None:
            return [None]
        from vllm.lora.request import LoRARequest

        return [LoRARequest(f"member {slot}", slot, "made from its seed") for slot in range(1, len(weights) + 1)]

    def _take_undefined(self, adapters: "Sequence[LoRARequest | None]") -> list[int]:
        """Return and reset the number of tokens with NaN or infinite logits for each adapter."""
        counts = [sum(each) for each in zip(*self._llm.collective_rpc("es_take_undefined"), strict=True)]
        if any(counts):  # clear the KV cache, because 0 x NaN is NaN in later answers, too
            self._llm.collective_rpc("es_clear_cache")
            self._llm.reset_prefix_cache()
            self._weights = ()
        return [counts[adapter.lora_int_id if adapter else 0] for adapter in adapters]

    def _cache_shared_prefix(self, prompts: Sequence[Sequence[int]], adapters: "Sequence[LoRARequest | None]") -> None:
        """Compute the prompts' shared prefix once. Prompts that are scheduled together would each compute it."""
        from vllm import SamplingParams, TokensPrompt

        if self._prefix_caching and (prefix := common_prefix(prompts)):
            once = SamplingParams(temperature=0.0, max_tokens=1)
            prefixes = [TokensPrompt(prompt_token_ids=prefix)] * len(adapters)
            self._llm.generate(prefixes, once, lora_request=list(adapters), use_tqdm=False)

    @_with_heartbeat
    def update(self, seeds: list[int], coefficients: list[float]) -> int:
        """Add ``sum_k coefficients[k] * eps(seeds[k])`` to the master weights. Returns their new checksum.

        Raises:
            RuntimeError: tensor-parallel ranks disagree about the checksum.
        """
        self._weights = ()
        checksums = {int(value) for value in self._llm.collective_rpc("es_update", args=(seeds, coefficients))}
        if len(checksums) != 1:
            raise RuntimeError(f"tensor-parallel ranks of one engine differ after es_update: {sorted(checksums)}")
        return checksums.pop()

    @_with_heartbeat
    def save(self, folder: str, exact: bool) -> None:
        """Write the master weights to ``folder`` as safetensors, in the checkpoint's types or exactly as they are.

        Files that an engine left there when it died while saving are removed.

        Raises:
            OSError: they could not be written.
        """
        for left in (*Path(folder).glob("*.safetensors*"), *Path(folder).glob(".tmp*")):
            left.unlink()
        for error in filter(None, self._llm.collective_rpc("es_save", args=(folder, exact))):
            raise OSError(*error, folder)

    @_with_heartbeat
    def tensor_checksums(self) -> dict[str, int]:
        """Return the checksum of each tensor of the master weights."""
        checksums: dict[str, int] = self._llm.collective_rpc("es_tensor_checksums")[0]
        return checksums


def _create_llm(kind: Callable[..., Any], settings: EngineSettings, options: dict[str, Any]) -> Any:
    """Create vLLM's engine. Raises ``UserError`` if vLLM refuses the model or a setting."""
    try:
        return kind(**options)
    except Exception as error:
        why = reason(error)
        if settings.low_rank and isinstance(error, ValueError) and "lora" in str(error).lower():
            raise UserError(
                f"--perturbation low-rank: not for this model ({why}); choose --perturbation full"
            ) from error
        if of_configuration(error):
            raise UserError(
                f"vLLM refuses the model {settings.model} with these settings: {why}; change the setting that this "
                "names, or choose another model"
            ) from error
        raise


def _sampling_params(sampling: Sampling, seeds: Sequence[int], vllm_detokenizes: bool) -> "list[SamplingParams]":
    """Return vLLM's parameters for each seed. vLLM looks for stop texts only in answers that it detokenizes."""
    from vllm import SamplingParams

    return [
        SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop) if vllm_detokenizes else [],
            stop_token_ids=list(sampling.stop_token_ids),
            include_stop_str_in_output=True,
            detokenize=vllm_detokenizes,
            seed=seed if sampling.temperature > 0 else None,
        )
        for seed in seeds
    ]


def _without_end(answer: Any, sampling: Sampling) -> Sequence[int]:
    """Return the token ids of vLLM's answer without the end token."""
    ids: Sequence[int] = answer.token_ids
    ended = answer.finish_reason == "stop" and ids and ids[-1] in sampling.stop_token_ids
    return ids[:-1] if ended else ids


def _redirect_output(path: Path) -> None:
    """Send everything this process and its children print to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)
