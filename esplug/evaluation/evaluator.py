"""Evaluator: spreads every split's prompts over the engines and grades answers as they arrive."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any

from esplug.config import RunConfig
from esplug.data.splits import EvaluationSplit
from esplug.engines import EnginePool, Job
from esplug.engines.messages import Completion, Generation, Sampling, Weights
from esplug.evaluation.figures import Sample, SplitEvaluation
from esplug.rewards import Graded, PendingRewards
from esplug.utils.progress import LiveProgress

#: Answers per job: few enough to spread over engines; fixed, so that answers do not depend on the number of engines.
CHUNK = {"cpu": 32, "cuda": 256}


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to generate: a sample of a split's row."""

    split: str
    index: int
    sample: int


def sampling_seed(run_seed: int, prompt: str, index: int, sample: int) -> int:
    """Return the sampling seed of one answer. It depends neither on the split's name nor on what else is evaluated."""
    name = f"{run_seed} {index} {sample} {prompt}".encode(errors="replace")
    return int.from_bytes(blake2b(name, digest_size=7).digest())


class Evaluator:
    """Evaluates the engines' weights on fixed splits.

    Args:
        config: sampling settings, number of answers, and the k of pass@k.
        splits: splits to evaluate, by name.
        device: device of the engines, ``cpu`` or ``cuda``.
        stop_token_ids: tokens that end an answer.
    """

    def __init__(
        self,
        config: RunConfig,
        splits: Mapping[str, EvaluationSplit],
        device: str,
        stop_token_ids: tuple[int, ...] = (),
    ) -> None:
        self.config, self.splits = config, splits
        self._sampling = Sampling(
            config.max_tokens, config.eval_temperature, config.eval_top_p, tuple(config.stop), stop_token_ids
        )
        self._chunks = [chunk for name in splits for chunk in self._chunked(name, CHUNK[device])]

    def evaluate(
        self,
        engines: EnginePool,
        grade: Callable[[Generation, Sequence[Any]], PendingRewards],
        progress: LiveProgress,
        title: str,
    ) -> tuple[list[SplitEvaluation], list[Graded]]:
        """Generate and grade all answers. Returns the splits in order, and all grades."""
        progress.begin(title, len(self._chunks))
        pending: dict[int, tuple[list[Completion], PendingRewards]] = {}
        for number, generation in engines.run(map(self._job, range(len(self._chunks)))):
            targets = [self.splits[request.split].targets[request.index] for request in self._chunks[number]]
            pending[number] = generation.completions, grade(generation, targets)
            progress.advance()
        requests = list(chain.from_iterable(self._chunks))
        completions = [answer for number in sorted(pending) for answer in pending[number][0]]
        grades = [grade for number in sorted(pending) for grade in pending[number][1].result()]
        by_task = any(grade.reward.correct is not None for grade in grades)
        samples = [
            self._sample(request, completion, grade, by_task)
            for request, completion, grade in zip(requests, completions, grades, strict=True)
        ]
        evaluated = [
            SplitEvaluation(name, [s for s in samples if s.split == name], tuple(self.config.pass_k), by_task)
            for name in self.splits
        ]
        return evaluated, grades

    def _chunked(self, split: str, size: int) -> Iterator[list[Request]]:
        """Cut a split's requests into chunks. Chunks never span splits, so that splits do not affect each other."""
        rows, samples = range(len(self.splits[split].prompts)), range(self.config.eval_n_samples)
        requests = [Request(split, index, sample) for index in rows for sample in samples]
        for first in range(0, len(requests), size):
            yield requests[first : first + size]

    def _job(self, number: int) -> Job[int]:
        config, chunk = self.config, self._chunks[number]
        return Job(
            keys=[number],
            weights=[Weights()],
            prompts=[self.splits[request.split].prompts[request.index] for request in chunk],
            sampling=self._sampling,
            seeds=[sampling_seed(config.seed, self.splits[r.split].texts[r.index], r.index, r.sample) for r in chunk],
            mini_batch_size=config.mini_batch_size,
        )

    def _sample(self, request: Request, completion: Completion, grade: Graded, by_task: bool) -> Sample:
        """Join an answer and its grade. If grading failed, it does not pass, even if ``max_reward`` is 0 or less."""
        split, reward = self.splits[request.split], grade.reward
        passed = bool(reward.correct) if by_task else not grade.failed and reward.value >= self.config.max_reward
        return Sample(
            split=request.split,
            index=request.index,
            sample=request.sample,
            prompt=split.texts[request.index],
            target=split.targets[request.index],
            output=completion.text,
            reward=reward.value,
            label=reward.label,
            correct=reward.correct,
            passed=passed,
            tokens=completion.tokens,
            finished=completion.finished,
            metrics=reward.metrics,
        )
