"""Toys for runs without Ray, vLLM and grading processes. Weights and records are real; answers depend on weights."""

import time
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from esplug.checkpoints.history import CaughtUp, History
from esplug.engines.jobs import Job
from esplug.engines.messages import Completion, Generation, Work
from esplug.hookspecs import Reward
from esplug.planning.placement import Node, Resources
from esplug.rewards import RewardPool
from esplug.rewards.grades import Graded, PendingRewards
from esplug.trainer import EvolutionStrategiesTrainer
from esplug.weights.master import MasterWeights


class ToyEngines:
    """One engine in this process."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._master = MasterWeights.load(model)

    def __len__(self) -> int:
        return 1

    def start(self, history: History) -> CaughtUp:
        self._master = MasterWeights.load(self._model)
        return self._master.catch_up(self._model, history.catch_up())

    def run(self, jobs: Any) -> Iterator[tuple[Any, Generation]]:
        for job in jobs:
            for key, weights in zip(job.keys, job.weights, strict=True):
                answers = [self._answer(job, weights, prompt) for prompt in job.prompts]
                yield key, Generation(answers, (Work(0, time.time(), 0.0, 0.001),))

    def _answer(self, job: Job[Any], weights: Any, prompt: Sequence[int]) -> Completion:
        told = repr((self._master.checksum(), weights, list(prompt)))
        return Completion(blake2b(told.encode()).hexdigest()[: job.sampling.max_tokens], job.sampling.max_tokens, True)

    def update(self, seeds: list[int], coefficients: list[float]) -> int:
        self._master.update(seeds, coefficients)
        return self._master.checksum()

    def save(self, folder: Path, *, exact: bool = False) -> None:
        self._master.save(folder, exact=exact)

    def usage(self, seconds: float) -> list[Any]:
        return []

    def close(self) -> None:
        """Do nothing: there are no processes."""


class ToyCluster:
    """A machine of two cores and no GPU."""

    def __init__(self, address: str | None, use_gpus: str | None) -> None: ...

    def resources(self, needed: str | None = None) -> Resources:
        return Resources((Node(gpus=0, cores=2, memory=16 * 2**30),))

    def close(self) -> None: ...


class ToyGraders:
    """Grades in this process."""

    name = "the toy reward"

    def __init__(self, reward: Any, **_: Any) -> None:
        self._reward = reward

    def begin(self) -> None: ...

    def ready(self) -> None: ...

    def close(self) -> None: ...

    def submit(self, outputs: Sequence[str], targets: Sequence[Any], conversations: None = None) -> PendingRewards:
        pending = PendingRewards(len(outputs))
        for index, (output, target) in enumerate(zip(outputs, targets, strict=True)):
            value = self._reward(output, target)
            pending.set_grade(index, Graded(value if isinstance(value, Reward) else Reward(value)))
        return pending


def use_toys(monkeypatch: pytest.MonkeyPatch, *, graders: bool = False) -> None:
    """Let all trainers use a toy machine with one toy engine. With ``graders``, rewards run in real processes."""

    def launch(trainer: EvolutionStrategiesTrainer) -> ToyEngines:
        return ToyEngines(trainer._model.folder)

    monkeypatch.setattr("esplug.runs.preparation.Cluster", ToyCluster)
    monkeypatch.setattr("esplug.runs.preparation.RewardPool", RewardPool if graders else ToyGraders)
    monkeypatch.setattr(EvolutionStrategiesTrainer, "launch_engines", launch)
