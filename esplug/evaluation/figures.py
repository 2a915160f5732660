"""Figures of an evaluation, with confidence intervals."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from statistics import fmean
from types import MappingProxyType
from typing import Any, Self

from esplug.data.conversation import n_answers
from esplug.engines.messages import Completion
from esplug.evaluation.statistics import Estimate, average, estimate, mean_estimate, pass_at_k
from esplug.events import EvaluationEnd
from esplug.hookspecs import Message, Reward


@dataclass(frozen=True, slots=True)
class Sample:
    """One graded answer of an evaluation.

    Attributes:
        index: position of the row in its split.
        sample: number of the answer to that row, from 0.
        finished: whether the answer ended before ``max_tokens``.
        output: the answer; of a conversation, the last one.
        passed: ``correct`` if the task sets it, else whether the reward reaches ``max_reward``.
        conversation: in a task of several turns, the messages after the prompt: answers and the environment's replies.
        ended: why the conversation ended: ``task``, ``max_turns``, ``too_long`` or ``failed``.
    """

    split: str
    index: int
    sample: int
    prompt: str
    target: Any
    output: str
    reward: float
    label: str
    correct: bool | None
    passed: bool
    tokens: int
    finished: bool
    metrics: Mapping[str, float] = field(default_factory=dict)
    conversation: Sequence[Message] = ()
    ended: str = ""

    @classmethod
    def of(cls, completion: Completion, reward: Reward, **about: Any) -> Self:
        """Join a completion and its reward; ``about`` is the rest, from ``split`` to ``target``, and ``passed``."""
        conversation = completion.conversation
        return cls(
            output=completion.text,
            reward=reward.value,
            label=reward.label,
            correct=reward.correct,
            tokens=completion.tokens,
            finished=completion.finished,
            metrics=reward.metrics,
            conversation=conversation.said if conversation else (),
            ended=conversation.ended if conversation else "",
            **about,
        )

    @property
    def turns(self) -> int:
        """Number of answers."""
        return n_answers(self.conversation) or 1

    def row(self) -> dict[str, Any]:
        """Return the sample as a row for loggers and files, without optional parts that it lacks."""
        row = {name: getattr(self, name) for name in self.__slots__}
        optional = {"metrics": dict(self.metrics), "conversation": list(self.conversation), "ended": self.ended}
        return {name: value for name, value in (row | optional).items() if value or name not in optional}


@dataclass(frozen=True)
class SplitEvaluation:
    """All samples of a split at one iteration.

    Attributes:
        samples: samples in the order of rows, the same number for every row.
        pass_k: values of k for which pass@k is reported.
        by_task: whether the task, rather than the reward, decides which answers pass.
    """

    split: str
    samples: list[Sample]
    pass_k: tuple[int, ...] = (1,)
    by_task: bool = True

    @cached_property
    def rows(self) -> list[list[Sample]]:
        """The samples of each row."""
        return [list(samples) for _, samples in groupby(self.samples, key=lambda sample: sample.index)]

    def passes(self, k: int = 1) -> list[float]:
        """pass@k of each row."""
        return [pass_at_k(len(row), sum(sample.passed for sample in row), k) for row in self.rows]

    @cached_property
    def rewards(self) -> list[float]:
        """Mean reward of each row, independent of the order of its samples."""
        return [fmean(sample.reward for sample in row) for row in self.rows]

    @property
    def pass_at_1(self) -> Estimate:
        """Share of answers that pass."""
        return self.figures["pass@1"]

    @property
    def reward(self) -> Estimate:
        """Mean reward."""
        return self.figures["reward"]

    @cached_property
    def figures(self) -> dict[str, Estimate]:
        """All figures by name: pass@k, reward, tokens, finished, the task's metrics and the share of each label."""
        values = {f"pass@{k}": self.passes(k) for k in self.pass_k} | {"reward": self.rewards}
        values["tokens"] = [fmean(sample.tokens for sample in row) for row in self.rows]
        values["finished"] = [sum(sample.finished for sample in row) / len(row) for row in self.rows]
        if any(sample.conversation for sample in self.samples):
            values["turns"] = [fmean(sample.turns for sample in row) for row in self.rows]
            for name in ("too_long", "failed"):
                values[name] = [sum(sample.ended == name for sample in row) / len(row) for row in self.rows]
        for name in sorted({name for sample in self.samples for name in sample.metrics}):
            measured = [[s.metrics[name] for s in row if name in s.metrics] for row in self.rows]
            values[f"metrics/{name}"] = [fmean(each) for each in measured if each]
        for label in sorted({sample.label for sample in self.samples if sample.label}):
            values[f"labels/{label}"] = [Counter(s.label for s in row)[label] / len(row) for row in self.rows]
        return {
            name: (mean_estimate if name in ("tokens", "turns") else estimate)(each) for name, each in values.items()
        }

    def record(self, iteration: int) -> dict[str, Any]:
        """Return the record for ``eval-output/``: figures and all samples."""
        samples = [sample.row() for sample in self.samples]
        return {"split": self.split, "iteration": iteration, "metrics": self.metrics(), "samples": samples}

    @classmethod
    def of_record(cls, record: Mapping[str, Any], pass_k: tuple[int, ...]) -> "SplitEvaluation":
        """Make the evaluation from its record. Raises ``KeyError`` or ``TypeError`` if the record is invalid."""
        samples = [Sample(**row) for row in record["samples"]]
        by_task = any(sample.correct is not None for sample in samples)
        return cls(record["split"], samples, pass_k, by_task)

    def metrics(self) -> dict[str, float]:
        """Return the figures under their logged names."""
        return _logged(f"eval/{self.split}", self.figures)


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of all splits at one iteration."""

    iteration: int
    splits: list[SplitEvaluation]
    seconds: float

    @cached_property
    def average(self) -> dict[str, Estimate]:
        """Averages of pass@k and reward over the splits, with equal weights."""
        names = [*(f"pass@{k}" for k in self.splits[0].pass_k), "reward"]
        return {name: average([split.figures[name] for split in self.splits]) for name in names}

    @property
    def mean(self) -> float:
        """The figure that selects the best model: average pass@1, or average reward if it decides what passes."""
        return self.average["pass@1" if self.splits[0].by_task else "reward"].mean

    def metrics(self) -> dict[str, float]:
        """Return the figures of all splits and their averages under their logged names."""
        out: dict[str, float] = {}
        for split in self.splits:
            out |= split.metrics()
        return out | _logged("eval/average", self.average) | {"time/evaluate": self.seconds}


def evaluation_end(evaluations: Sequence[Evaluation]) -> EvaluationEnd:
    """Return the record for callbacks of the last of a run's evaluations."""
    *earlier, last = evaluations
    return EvaluationEnd(
        last.iteration,
        MappingProxyType(last.metrics()),
        tuple((each.iteration, MappingProxyType(_figures_of(each))) for each in earlier),
        tuple(sample.row() for split in last.splits for sample in split.samples),
    )


def _figures_of(evaluation: Evaluation) -> dict[str, float]:
    """Return the metrics without times, which are unknown for the evaluations of earlier processes."""
    return {name: value for name, value in evaluation.metrics().items() if not name.startswith("time/")}


def _logged(root: str, figures: Mapping[str, Estimate]) -> dict[str, float]:
    """Name means and interval bounds; labels' shares have no bounds."""
    out = {}
    for name, figure in figures.items():
        if name.startswith("labels/"):
            out[f"{root}/{name}"] = figure.mean
        else:
            for key, value in (("mean", figure.mean), ("ci95_low", figure.low), ("ci95_high", figure.high)):
                out[f"{root}/{name}/{key}"] = value
    return out
