"""Evaluator: spreads every split's prompts over the engines and grades answers as they arrive."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any

from esplug.config import RunConfig
from esplug.conversations.dialogues import Rows
from esplug.data.splits import EvaluationSplit
from esplug.engines import Job
from esplug.engines.messages import Completion, Generation, Sampling, Weights
from esplug.evaluation.figures import Sample, SplitEvaluation
from esplug.hookspecs import Prompt
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
    """Evaluates the weights of engines on a device, ``cpu`` or ``cuda``, with fixed splits."""

    def __init__(
        self, config: RunConfig, splits: Mapping[str, EvaluationSplit], device: str, stop_tokens: tuple[int, ...] = ()
    ) -> None:
        self.config, self.splits, stop = config, splits, tuple(config.stop)
        self._sampling = Sampling(config.max_tokens, config.eval_temperature, config.eval_top_p, stop, stop_tokens)
        self._chunks = [chunk for name in splits for chunk in self._chunked(name, CHUNK[device])]

    def evaluate(
        self,
        generate: Callable[[Iterable[Job[int]], Rows], Iterable[tuple[int, Generation]]],
        grade: Callable[[Generation, Sequence[Any]], PendingRewards],
        progress: LiveProgress,
        title: str,
    ) -> tuple[list[SplitEvaluation], list[Graded]]:
        """Generate and grade all answers. Returns the splits in order, and all grades.

        Args:
            generate: answers jobs, in any order; it also gets a function from a job's key to its prompts and targets.
            grade: starts grading the answers to a job.
        """
        progress.begin(title, len(self._chunks))
        answered: dict[int, tuple[list[Completion], PendingRewards]] = {}
        for number, generation in generate(map(self._job, range(len(self._chunks))), self._rows):
            answered[number] = generation.completions, grade(generation, self._rows(number)[1])
            progress.advance()
        in_order = [answered[number] for number in range(len(self._chunks))]
        completions = [completion for each, _ in in_order for completion in each]
        grades = [graded for _, pending in in_order for graded in pending.result()]
        by_task = any(graded.reward.correct is not None for graded in grades)
        rows = zip(chain.from_iterable(self._chunks), completions, grades, strict=True)
        samples = [self._sample(*row, by_task) for row in rows]
        pass_k = tuple(self.config.pass_k)
        of_split = {name: [sample for sample in samples if sample.split == name] for name in self.splits}
        return [SplitEvaluation(name, of_split[name], pass_k, by_task) for name in of_split], grades

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

    def _rows(self, number: int) -> tuple[list[Prompt], list[Any]]:
        """Return the prompts, as the task gave them, and the targets of a chunk."""
        splits = [(self.splits[request.split], request.index) for request in self._chunks[number]]
        return [s.templates[i] for s, i in splits if s.templates], [s.targets[i] for s, i in splits]

    def _sample(self, request: Request, completion: Completion, grade: Graded, by_task: bool) -> Sample:
        """Join an answer and its grade. If grading failed, it does not pass, even if ``max_reward`` is 0 or less."""
        split, reward = self.splits[request.split], grade.reward
        passed = bool(reward.correct) if by_task else not grade.failed and reward.value >= self.config.max_reward
        prompt, target = split.texts[request.index], split.targets[request.index]
        return Sample.of(completion, reward, **asdict(request), prompt=prompt, target=target, passed=passed)
