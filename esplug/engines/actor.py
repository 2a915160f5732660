"""Engine actor: one vLLM that answers prompts with a member's weights and applies updates from seeds."""

import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from esplug.checkpoints.history import CatchUp, CaughtUp
from esplug.engines.engine_errors import of_configuration, reason, with_plain_errors
from esplug.engines.messages import EngineSettings, Generation, Sampling, Weights, Work
from esplug.engines.rollout_answers import Answering, choose
from esplug.engines.usage import EngineUsage, UsageMeter
from esplug.engines.vllm_answers import VLLMAnswers
from esplug.engines.vllm_options import llm_options, memory_share, rank_cores, set_environment
from esplug.errors import UserError
from esplug.utils.free_memory import free_memory
from esplug.vllm_worker.heartbeat import Heartbeat, beat_every_step
from esplug.vllm_worker.scheduler_patch import SchedulerPatch, scheduler_of
from esplug.vllm_worker.start_proof import load_and_prove

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
        self._answering: Answering

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
        import ray

        if settings.models:
            here = settings.models.get(ray.get_runtime_context().get_node_id(), settings.model)
            settings = replace(settings, model=here)
        self._low_rank = settings.low_rank
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
        patch = SchedulerPatch(scheduler_of(self._llm)) if self.light_bookkeeping else None
        beat_every_step(self._llm, self._heartbeat)
        vllm = VLLMAnswers(self._llm, self._heartbeat, patch, settings.prefix_caching)
        caught_up = self.catch_up(catch_up)
        self._answering, who = choose(self._llm, settings, self._heartbeat.place, vllm)
        print(f"rollout: {who}", flush=True)
        return replace(caught_up, unread=unread, decoder=who)

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
        began, started, count, switch_seconds = time.time(), time.perf_counter(), len(weights), 0.0
        if tuple(weights) != self._weights:
            self._weights = ()
            self._write(weights)
            self._weights = tuple(weights)
            switch_seconds = time.perf_counter() - started
        in_adapters = self._low_rank and weights[0].member_seed is not None
        slots = range(1, count + 1) if in_adapters else [0]
        completions, undefined = self._answering.answer(prompts, seeds, sampling, slots)
        if any(undefined):  # clear the KV cache, because 0 x NaN is NaN in later answers, too
            self._llm.collective_rpc("es_clear_cache")
            self._weights = ()
        work = Work(-1, began, switch_seconds, time.perf_counter() - started - switch_seconds, count)
        return [
            Generation(completions[i * len(prompts) : (i + 1) * len(prompts)], (work,), undefined[i])
            for i in range(count)
        ]

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
    def save_here(self, exact: bool) -> str:
        """Write the master weights as :meth:`save` does, to a temporary folder of this node. Returns the folder."""
        folder = tempfile.mkdtemp(prefix="esplug-weights-")
        try:
            self.save(folder, exact)
        except BaseException:
            self.remove(folder)
            raise
        return folder

    def files(self, folder: str) -> list[tuple[str, int]]:
        """Return the names and sizes of the files in a folder."""
        return [(path.name, path.stat().st_size) for path in sorted(Path(folder).iterdir()) if path.is_file()]

    def read(self, folder: str, name: str, start: int, count: int) -> bytes:
        """Return up to ``count`` bytes of a file."""
        with (Path(folder) / name).open("rb") as file:
            file.seek(start)
            return file.read(count)

    def remove(self, folder: str) -> None:
        """Remove a temporary folder."""
        shutil.rmtree(folder, ignore_errors=True)

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


def _redirect_output(path: Path) -> None:
    """Send everything this process and its children print to ``path``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:  # on another node, where the run's directory cannot be made; Ray's own log has the output
        return
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)
