"""Reference arms on esplug's engines: the reference's arithmetic and schedule, and true Gaussian noise.

The reference is the framework published with ES-at-Scale (arXiv 2509.24372), reimplemented from its description.

- Arithmetic: the master weights have the model's own type. A member's noise is added in place and subtracted again. The
  generator starts from the same seed for every tensor, so tensors of equal shape get equal noise. The update is
  accumulated in the model's type.
- Schedule: no prefix caching. Members go to the n engines in groups of n, and all engines wait for the slowest. Then
  answers are graded one after another. Evaluation runs on the first engine.

On a CPU, vLLM computes with packed copies of the weights, which cannot be written in place. There the master tensors
are perturbed in place and then passed to vLLM by the same ``reload_weights`` as esplug's own, once a member: restoring
the weights needs no reload, because the next member's reload covers it. Each engine's weights drift with the noise of
its own members, and esplug rejects engines whose checksums differ. Therefore the reference runs on one engine here;
``benchmarks/scaling`` simulates its barrier on more.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esplug.engines.actor import Engine
from esplug.engines.jobs import Job, Key
from esplug.engines.messages import EngineSettings, Generation, Sampling, Weights
from esplug.engines.pool import EnginePool
from esplug.engines.rollout_answers import RolloutAnswers
from esplug.es.members import Member
from esplug.noise.full_rank import tensor_key
from esplug.rewards import Graded
from esplug.rewards.replies import as_reward
from esplug.runs.metrics import PopulationResult
from esplug.trainer import EvolutionStrategiesTrainer
from esplug.vllm_worker.extension import ESWorkerExtension

ROOT = Path(__file__).parents[2]


class ReferenceWorker(ESWorkerExtension):
    """Perturbs, restores and updates in place. Requires master weights in the model's own type."""

    _added: tuple[int, float] | None = None

    def es_set_weights(self, member_seed: int | None, scale: float) -> None:
        self.es_restore()
        if member_seed is not None:
            self._add(member_seed, scale)
            self._added = member_seed, scale
        super().es_set_weights(None, 0.0)

    def es_restore(self) -> None:
        """Subtract the noise that was added last. The weights are restored up to rounding."""
        if self._added is not None:
            seed, scale = self._added
            self._add(seed, -scale)
            self._added = None

    def es_update(self, seeds: list[int], coefficients: list[float]) -> int:
        self.es_restore()
        for _, tensor in self._named_tensors():
            total = torch.zeros_like(tensor)
            for seed, coefficient in zip(seeds, coefficients, strict=True):
                total.add_(self._noise(seed, tensor), alpha=coefficient)
            tensor.add_(total)
        return self._es_master.checksum()

    def _add(self, seed: int, scale: float) -> None:
        for _, tensor in self._named_tensors():
            tensor.add_(self._noise(seed, tensor), alpha=scale)

    def _noise(self, seed: int, tensor: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator(tensor.device).manual_seed(seed % 2**63)
        return torch.randn(tensor.shape, dtype=tensor.dtype, device=tensor.device, generator=generator)

    def _named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        tensors = ((name, self._es_master[name]) for name in self._es_master.names)
        return ((name, tensor) for name, tensor in tensors if tensor.is_floating_point())


class ReferenceMathsWorker(ReferenceWorker):
    """Computes the same numbers faster, for runs that are not timed: makes the noise of equal shapes only once."""

    _made: tuple[int | None, dict[torch.Size, torch.Tensor]] = (None, {})

    def _noise(self, seed: int, tensor: torch.Tensor) -> torch.Tensor:
        if self._made[0] != seed:
            self._made = seed, {}
        noise = self._made[1]
        if tensor.shape not in noise:
            noise[tensor.shape] = super()._noise(seed, tensor)
        return noise[tensor.shape]

    def es_update(self, seeds: list[int], coefficients: list[float]) -> int:
        self.es_restore()
        totals = {name: torch.zeros_like(tensor) for name, tensor in self._named_tensors()}
        for seed, coefficient in zip(seeds, coefficients, strict=True):
            for name, tensor in self._named_tensors():
                totals[name].add_(self._noise(seed, tensor), alpha=coefficient)
        for name, tensor in self._named_tensors():
            tensor.add_(totals[name])
        return self._es_master.checksum()


class GaussianWorker(ESWorkerExtension):
    """esplug's arithmetic with true Gaussian noise, independent for every tensor."""

    def es_set_weights(self, member_seed: int | None, scale: float) -> None:
        if member_seed is None:
            return super().es_set_weights(None, 0.0)
        dtype = self.model_runner.model_config.dtype
        perturbed = (
            (name, torch.add(master, self._eps(member_seed, name), alpha=scale).to(dtype))
            for name, master in ((name, self._es_master[name]) for name in self._es_master.names)
        )
        self._es_reload(perturbed)

    def es_update(self, seeds: list[int], coefficients: list[float]) -> int:
        for name in self._es_master.names:
            total = torch.zeros_like(self._es_master[name])
            for seed, coefficient in zip(seeds, coefficients, strict=True):
                total.add_(self._eps(seed, name), alpha=coefficient)
            self._es_master[name].add_(total)
        return self._es_master.checksum()

    def _eps(self, seed: int, name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(tensor_key(seed, name) % 2**63)
        return torch.randn(self._es_master[name].shape, generator=generator)


class TiedWorker(GaussianWorker):
    """esplug's arithmetic with Gaussian noise that is equal in tensors of equal shape, as in the reference."""

    def _eps(self, seed: int, name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed % 2**63)
        return torch.randn(self._es_master[name].shape, generator=generator)


class BenchmarkEngine(Engine):
    """Engine that can import this module in its Ray worker and takes extra vLLM arguments from the environment.

    ``ESPLUG_BENCHMARK_LLM`` holds arguments of ``LLM`` and ``ESPLUG_BENCHMARK_SAMPLING`` those of ``SamplingParams``,
    both as JSON. ``ESPLUG_BENCHMARK_AMX=0`` hides AMX from vLLM; oneDNN has its own variable.
    """

    def start(self, *arguments: Any) -> Any:
        if os.environ.get("ESPLUG_BENCHMARK_AMX") == "0":
            torch.cpu._is_amx_tile_supported = lambda: False
        import vllm

        sys.path.insert(0, str(ROOT))
        _add_arguments(vllm, "LLM", "LLM")
        started = super().start(*arguments)
        _add_arguments(vllm, "SamplingParams", "SAMPLING")  # after the start, for which vLLM needs the type itself
        return started

    def generate(
        self, weights: Sequence[Weights], prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> list[Generation]:
        if "ignore_eos" in os.environ.get("ESPLUG_BENCHMARK_SAMPLING", ""):
            sampling = replace(sampling, stop=(), stop_token_ids=())
            if isinstance(self._answering, RolloutAnswers):
                self._answering._end = None
        return super().generate(weights, prompts, seeds, sampling)


def _add_arguments(vllm: Any, kind: str, variable: str) -> None:
    """Make a class of vLLM take arguments from the environment, which override those of the caller."""
    if settings := os.environ.get(f"ESPLUG_BENCHMARK_{variable}"):
        setattr(vllm, kind, functools.partial(_construct, getattr(vllm, kind), json.loads(settings)))


def _construct(kind: Callable[..., Any], settings: dict[str, Any], **arguments: Any) -> Any:
    return kind(**(arguments | settings))


class BenchmarkPool(EnginePool):
    engine = BenchmarkEngine


class ReferenceMathsEngine(BenchmarkEngine):
    worker_extension = "benchmarks.shared.reference.ReferenceMathsWorker"


class GaussianEngine(BenchmarkEngine):
    worker_extension = "benchmarks.shared.reference.GaussianWorker"


class TiedEngine(BenchmarkEngine):
    worker_extension = "benchmarks.shared.reference.TiedWorker"


class PlainEngine(BenchmarkEngine):
    light_bookkeeping = False


class ReferenceEngine(PlainEngine):
    worker_extension = "benchmarks.shared.reference.ReferenceWorker"

    def start(self, settings: EngineSettings, *arguments: Any) -> Any:
        return super().start(replace(settings, prefix_caching=False, rollout="vllm"), *arguments)

    def restore(self) -> None:
        self._weights = None
        self._llm.collective_rpc("es_restore")


class PlainPool(EnginePool):
    """esplug with vLLM's scheduler unpatched."""

    engine = PlainEngine


class ReferenceMathsPool(EnginePool):
    """The reference's arithmetic on esplug's schedule."""

    engine = ReferenceMathsEngine


class GaussianPool(EnginePool):
    engine = GaussianEngine


class TiedPool(EnginePool):
    engine = TiedEngine


class ReferencePool(EnginePool):
    engine = ReferenceEngine

    def run(self, jobs: Iterable[Job[Key]]) -> Iterator[tuple[Key, Generation]]:
        """Evaluate on the first engine, one job after another."""
        for job in jobs:
            (generation,) = self.run_group([job])
            yield job.keys[0], generation

    def run_group(self, jobs: Sequence[Job[Any]]) -> list[Generation]:
        """Run each job on its own engine, and wait for the slowest."""
        import ray

        refs = [
            slot.actor.generate.remote(job.weights, job.prompts, job.seeds, job.sampling)
            for slot, job in zip(self._slots, jobs, strict=False)
        ]
        return [generation for (generation,) in ray.get(refs)]

    def restore(self) -> None:
        self._call(self._slots, "restore")


class ReferenceTrainer(EvolutionStrategiesTrainer):
    """The reference's schedule and arithmetic. A batch must fit into one mini-batch."""

    pool = ReferencePool

    def evaluate_population_on_batch(
        self, members: Sequence[Member], questions: Sequence[Any], targets: Sequence[Any]
    ) -> PopulationResult:
        jobs = list(self._jobs(members, questions))
        assert isinstance(self.engines, ReferencePool)
        assert len(self.engines) == 1
        assert len(questions) <= self.config.mini_batch_size
        assert self.reward_function is not None
        generations: list[Generation] = []
        graded: list[list[Graded]] = []
        generating = grading = 0.0
        for first in range(0, len(jobs), len(self.engines)):
            started = time.perf_counter()
            group = self.engines.run_group(jobs[first : first + len(self.engines)])
            answered = time.perf_counter()
            self.engines.restore()
            group = [_with_restore(generation, time.perf_counter() - answered) for generation in group]
            generating += time.perf_counter() - started
            started = time.perf_counter()
            for generation in group:
                answers = zip(generation.completions, targets, strict=True)
                graded.append([Graded(as_reward(self.reward_function(answer.text, t))) for answer, t in answers])
            grading += time.perf_counter() - started
            generations += group
        rewards = np.array([[grade.reward.value for grade in row] for row in graded])
        return PopulationResult(rewards, graded, generations, generating, grading)


def _with_restore(generation: Generation, seconds: float) -> Generation:
    """Add the time of subtracting the noise to the switch."""
    (work,) = generation.work
    return replace(generation, work=(replace(work, switch_seconds=work.switch_seconds + seconds),))
