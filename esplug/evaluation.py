"""Figures of an evaluation, each with its uncertainty."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esplug.engine import Completion
from esplug.hookspecs import Reward

#: Two-sided 95% quantile of the normal distribution.
Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95% interval over n samples."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True, slots=True)
class Sample:
    """One graded answer of an evaluation."""

    split: str
    prompt: str
    target: Any
    output: str
    reward: float
    label: str
    correct: bool | None
    tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the sample as loggers and files take it."""
        names = ("split", "prompt", "target", "output", "reward", "label", "correct", "tokens")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class SplitEvaluation:
    """All samples of a split at one iteration."""

    split: str
    samples: list[Sample]

    @property
    def rewards(self) -> list[float]:
        """Each sample's reward."""
        return [sample.reward for sample in self.samples]

    @property
    def passes(self) -> list[float]:
        """1.0 for each correct sample, else 0.0, failed grading too; the rewards where none says ``correct``."""
        if all(sample.correct is None for sample in self.samples):
            return self.rewards
        return [float(bool(sample.correct)) for sample in self.samples]

    @property
    def reward(self) -> Estimate:
        """Mean reward, normal interval."""
        return mean_estimate(self.rewards)

    @property
    def pass_at_1(self) -> Estimate:
        """Mean of :attr:`passes`; Wilson interval where they are proportions."""
        passes = self.passes
        if set(passes) <= {0.0, 1.0}:
            return proportion_estimate(int(sum(passes)), len(passes))
        return mean_estimate(passes)

    def record(self, iteration: int) -> dict[str, Any]:
        """Return what ``eval-output/`` keeps: figures and every sample."""
        return {
            "split": self.split,
            "iteration": iteration,
            "metrics": self.metrics(),
            "samples": [sample.row() for sample in self.samples],
        }

    def metrics(self) -> dict[str, float]:
        """Return the figures under their logged names."""
        root, labels = f"eval/{self.split}", Counter(sample.label for sample in self.samples if sample.label)
        out: dict[str, float] = {}
        for name, estimate in (("pass@1", self.pass_at_1), ("reward", self.reward)):
            out |= {
                f"{root}/{name}/mean": estimate.mean,
                f"{root}/{name}/ci95_low": estimate.low,
                f"{root}/{name}/ci95_high": estimate.high,
            }
        for name in sorted({name for sample in self.samples for name in sample.metrics}):
            values = [sample.metrics[name] for sample in self.samples if name in sample.metrics]
            out[f"{root}/metrics/{name}/mean"] = sum(values) / len(values)
        out[f"{root}/tokens/mean"] = sum(sample.tokens for sample in self.samples) / len(self.samples)
        return out | {f"{root}/labels/{label}": count / len(self.samples) for label, count in sorted(labels.items())}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All splits at one iteration."""

    iteration: int
    splits: list[SplitEvaluation]
    seconds: float

    @property
    def mean(self) -> float:
        """Average of the splits' pass@1: the figure by which the best model is chosen."""
        return sum(split.pass_at_1.mean for split in self.splits) / len(self.splits)

    def metrics(self) -> dict[str, float]:
        """Return every split's figures and their averages."""
        out: dict[str, float] = {}
        for split in self.splits:
            out |= split.metrics()
        rewards = sum(split.reward.mean for split in self.splits) / len(self.splits)
        averages = {"eval/average/pass@1/mean": self.mean, "eval/average/reward/mean": rewards}
        return out | averages | {"time/evaluate": self.seconds}


def sample_of(split: str, prompt: str, target: Any, completion: Completion, reward: Reward) -> Sample:
    """Join an answer and its grade."""
    return Sample(
        split=split,
        prompt=prompt,
        target=target,
        output=completion.text,
        reward=reward.value,
        label=reward.label,
        correct=reward.correct,
        tokens=completion.tokens,
        metrics=reward.metrics,
    )


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Estimate a mean with the normal 95% interval from the sample's standard error."""
    n = len(values)
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else 0.0
    half = Z95 * spread / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def proportion_estimate(successes: int, n: int) -> Estimate:
    """Estimate a proportion with Wilson's score interval (Wilson 1927, JASA 22)."""
    p, shrink = successes / n, 1 + Z95**2 / n
    centre = (p + Z95**2 / (2 * n)) / shrink
    half = Z95 / shrink * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), n)


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """Estimate how much the mean changed on the same prompts, with the interval of the paired differences."""
    return mean_estimate([new - old for old, new in zip(before, after, strict=True)])
