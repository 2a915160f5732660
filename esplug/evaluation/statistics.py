"""Estimates with 95% intervals: proportions, means, pass@k and paired differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Two-sided 95% quantile of the normal distribution.
Z95 = 1.959963984540054
#: Resamples of a bootstrap interval. They use a fixed seed, so that equal data give equal intervals.
RESAMPLES = 5_000
_DRAWS_AT_A_TIME = 4_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95% interval over n prompts."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Change of a figure on the same prompts.

    Attributes:
        difference: mean of after minus before, with its interval.
        gained: positions of the prompts on which the figure rose.
        lost: positions of the prompts on which it fell.
        p_value: of the two-sided exact sign test of gained against lost (for right and wrong answers, McNemar's test).
    """

    difference: Estimate
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    p_value: float


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the unbiased estimate of pass@k, ``1 - C(n - c, k) / C(n, k)`` (Chen et al. 2021, arXiv 2107.03374).

    Args:
        n: sampled answers.
        correct: correct answers among them.
        k: allowed attempts, at most n.
    """
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the mean of one value per prompt, as a proportion if all values are 0 or 1."""
    if set(values) <= {0.0, 1.0}:
        return proportion_estimate(round(sum(values)), len(values))
    return mean_estimate(values)


def proportion_estimate(successes: int, n: int) -> Estimate:
    """Estimate a proportion with Wilson's score interval (Wilson 1927, JASA 22)."""
    p, shrink = successes / n, 1 + Z95**2 / n
    centre = (p + Z95**2 / (2 * n)) / shrink
    half = Z95 / shrink * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return _containing(p, max(0.0, centre - half), min(1.0, centre + half), n)


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Estimate a mean with the bootstrap's percentile interval (Efron 1979, Annals of Statistics 7)."""
    low, high = np.quantile(_resampled_means(values), [0.025, 0.975])
    return _containing(math.fsum(values) / len(values), float(low), float(high), len(values))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Average independent estimates with equal weights.

    The squares of the distances from mean to bound add up (MOVER: Zou and Donner 2008, Statistics in Medicine 27), so
    splits that are all right or all wrong keep an interval.
    """
    m = len(estimates)
    mean = math.fsum(each.mean for each in estimates) / m
    below = math.hypot(*(each.mean - each.low for each in estimates)) / m
    above = math.hypot(*(each.high - each.mean for each in estimates)) / m
    return Estimate(mean, mean - below, mean + above, sum(each.n for each in estimates))


def compare(before: Sequence[float], after: Sequence[float]) -> Comparison:
    """Compare one value per prompt before and after, prompt by prompt."""
    changes = [new - old for old, new in zip(before, after, strict=True)]
    gained = tuple(i for i, change in enumerate(changes) if change > 0)
    lost = tuple(i for i, change in enumerate(changes) if change < 0)
    return Comparison(paired_difference(before, after), gained, lost, _sign_test(len(gained), len(lost)))


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """Estimate how much a mean changed on the same prompts.

    Two proportions get Newcombe's interval for paired data (Newcombe 1998, Statistics in Medicine 17, pp. 2635-2650,
    method 10), which holds even if few or no prompts changed. Other means get the bootstrap's interval.
    """
    if not set(before) | set(after) <= {0.0, 1.0}:
        return mean_estimate([new - old for old, new in zip(before, after, strict=True)])
    n, cells = len(before), list(zip(before, after, strict=True))
    both, lost, gained, neither = (cells.count(cell) for cell in ((1, 1), (1, 0), (0, 1), (0, 0)))
    old, new = proportion_estimate(both + lost, n), proportion_estimate(both + gained, n)
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    agreement = float(both * neither - lost * gained)
    if agreement > 0:  # the continuity correction
        agreement = max(agreement - n / 2, 0.0)
    phi = agreement / math.sqrt(margins) if margins else 0.0
    mean = (gained - lost) / n

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    low = mean - distance(new.mean - new.low, old.high - old.mean)
    high = mean + distance(new.high - new.mean, old.mean - old.low)
    return Estimate(mean, low, high, n)


def _containing(mean: float, low: float, high: float, n: int) -> Estimate:
    """Return the estimate with bounds that contain the mean despite rounding errors."""
    return Estimate(mean, min(low, mean), max(high, mean), n)


def _resampled_means(values: Sequence[float]) -> NDArray[np.float64]:
    """Return the means of :data:`RESAMPLES` resamples with replacement."""
    data, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(0)
    if np.ptp(data) == 0:
        return np.full(RESAMPLES, data[0])
    at_a_time = max(1, _DRAWS_AT_A_TIME // len(data))
    counts = [min(at_a_time, RESAMPLES - done) for done in range(0, RESAMPLES, at_a_time)]
    return np.concatenate([data[rng.integers(0, len(data), (count, len(data)))].mean(axis=1) for count in counts])


def _sign_test(gained: int, lost: int) -> float:
    """Return the two-sided exact binomial p-value that gains and losses are equally likely."""
    changed = gained + lost
    tail = term = 1  # the sum of C(changed, i), each computed from the previous one
    for i in range(min(gained, lost)):
        term = term * (changed - i) // (i + 1)
        tail += term
    return min(1.0, float(2 * tail / 2**changed)) if changed else 1.0
