"""Other arms on esplug's engines: the reference's arithmetic, its schedule, and true Gaussian noise.

The reference is what the framework published with ES-at-Scale (arXiv 2509.24372) does, written anew from a
description of it. Its arithmetic: weights are kept in the model's own type, a member's noise is added in place and
subtracted again, each tensor's from a generator seeded alike, so that tensors of equal shape get equal noise, and the
update is accumulated in that type. Its schedule: no prefix caching; members go to the n engines in groups of n; all
engines wait for the slowest; then answers are graded one after another; evaluation runs on the first engine.

On the CPU vLLM computes with packed copies of the weights, into which nobody can write in place. So there the tensors
are perturbed in place and then handed over by the same ``reload_weights`` as esplug's own, once a member: restoring
costs the reference no handing over, because the next member's does for both. As every engine's weights drift by its own
members' noise, which esplug's checksums refuse, the reference runs on one engine here; ``benchmarks/scaling``
simulates its barrier on more.
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
from esplug.engines.messages import EngineSettings, Generation
from esplug.engines.pool import EnginePool, Job, Key
from esplug.es.members import Member
from esplug.noise.full_rank import tensor_key
from esplug.rewards.grader import as_reward
from esplug.rewards.pool import Graded
from esplug.runs.metrics import PopulationResult
from esplug.trainer import EvolutionStrategiesTrainer
from esplug.vllm_worker.extension import ESWorkerExtension

ROOT = Path(__file__).parents[2]


class ReferenceWorker(ESWorkerExtension):
    """Perturbs, restores and updates in place. Wants master weights in the model's own type."""

    _added: tuple[int, float] | None = None

    def es_set_weights(self, member_seed: int | None, scale: float) -> None:
        self.es_restore()
        if member_seed is not None:
            self._add(member_seed, scale)
            self._added = member_seed, scale
        super().es_set_weights(None, 0.0)

    def es_restore(self) -> None:
        """Take away the noise that was added last, up to rounding."""
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
    """The same numbers sooner, where time is not the question: equal noise of equal tensors is made once."""

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
    """esplug's arithmetic with independent, truly Gaussian noise for every tensor."""

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
    """esplug's arithmetic with Gaussian noise that is equal in tensors of equal shape, as the reference's is."""

    def _eps(self, seed: int, name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed % 2**63)
        return torch.randn(self._es_master[name].shape, generator=generator)


class BenchmarkEngine(Engine):
    """Finds this file, where Ray starts it, and lets benchmarks say more to vLLM, as JSON in the environment.

    ``ESPLUG_BENCHMARK_LLM`` holds arguments of ``LLM``, ``ESPLUG_BENCHMARK_SAMPLING`` those of ``SamplingParams``. With
    ``ESPLUG_BENCHMARK_AMX=0`` vLLM takes the processor to have no AMX; oneDNN has a variable of its own.
    """

    def start(self, *arguments: Any) -> Any:
        if os.environ.get("ESPLUG_BENCHMARK_AMX") == "0":
            torch.cpu._is_amx_tile_supported = lambda: False
        import vllm

        sys.path.insert(0, str(ROOT))
        _tell(vllm, "LLM", "LLM")
        started = super().start(*arguments)
        _tell(vllm, "SamplingParams", "SAMPLING")  # vLLM needs the type itself while it starts
        return started


def _tell(vllm: Any, kind: str, variable: str) -> None:
    if settings := os.environ.get(f"ESPLUG_BENCHMARK_{variable}"):
        setattr(vllm, kind, functools.partial(_made, getattr(vllm, kind), json.loads(settings)))


def _made(kind: Callable[..., Any], settings: dict[str, Any], **named: Any) -> Any:
    return kind(**(named | settings))


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
        return super().start(replace(settings, prefix_caching=False), *arguments)

    def restore(self) -> None:
        self._weights = None
        self._llm.collective_rpc("es_restore")


class PlainPool(EnginePool):
    """vLLM's scheduler as it comes."""

    engine = PlainEngine


class ReferenceMathsPool(EnginePool):
    """Reference arithmetic under esplug's own schedule."""

    engine = ReferenceMathsEngine


class GaussianPool(EnginePool):
    engine = GaussianEngine


class TiedPool(EnginePool):
    engine = TiedEngine


class ReferencePool(EnginePool):
    engine = ReferenceEngine

    def run(self, jobs: Iterable[Job[Key]]) -> Iterator[tuple[Key, Generation]]:
        """Evaluate: on the first engine, one job after another."""
        for job in jobs:
            (generation,) = self.run_group([job])
            yield job.keys[0], generation

    def run_group(self, jobs: Sequence[Job[Any]]) -> list[Generation]:
        """Have each job done by an engine of its own, and wait for the slowest."""
        import ray

        refs = [
            seat.actor.generate.remote(job.weights, job.prompts, job.seeds, job.sampling)
            for seat, job in zip(self._seats, jobs, strict=False)
        ]
        return [generation for (generation,) in ray.get(refs)]

    def restore(self) -> None:
        self._ask(self._seats, "restore")


class ReferenceTrainer(EvolutionStrategiesTrainer):
    """The reference's schedule and arithmetic; a batch must be one mini-batch."""

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
            group = [_and_restored(generation, time.perf_counter() - answered) for generation in group]
            generating += time.perf_counter() - started
            started = time.perf_counter()
            for generation in group:
                answers = zip(generation.completions, targets, strict=True)
                graded.append([Graded(as_reward(self.reward_function(answer.text, t))) for answer, t in answers])
            grading += time.perf_counter() - started
            generations += group
        rewards = np.array([[grade.reward.value for grade in row] for row in graded])
        return PopulationResult(rewards, graded, generations, generating, grading)


def _and_restored(generation: Generation, seconds: float) -> Generation:
    """Count the time in which the noise was subtracted as part of the switch to other weights."""
    (work,) = generation.work
    return replace(generation, work=(replace(work, switch_seconds=work.switch_seconds + seconds),))
