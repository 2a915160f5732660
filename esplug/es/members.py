"""Members of a population: their seeds and signs, and the correlation of mirrored ones."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esplug.noise.full_rank import member_seed


@dataclass(frozen=True, slots=True)
class Member:
    """One perturbation of the population: ``master + sign * sigma * eps(seed)``."""

    index: int
    seed: int
    sign: int


def population(run_seed: int, iteration: int, size: int, *, antithetic: bool) -> list[Member]:
    """Draw the members of an iteration. With ``antithetic``, members 2k and 2k+1 mirror each other."""
    if not antithetic:
        return [Member(i, member_seed(run_seed, iteration, i), +1) for i in range(size)]
    return [Member(i, member_seed(run_seed, iteration, i // 2), +1 - 2 * (i % 2)) for i in range(size)]


def mirrored_correlation(rewards: NDArray[np.float64]) -> float:
    """Return the correlation of mirrored members' mean rewards.

    Near -1, the reward is linear within sigma, so the pairs' differences are all signal. Near 0, noise hides the slope,
    or curvature varies as much. NaN with fewer than three pairs, or if either side does not vary.

    Args:
        rewards: float64[N, B], members 2k and 2k+1 mirrored.
    """
    means = rewards.mean(axis=1)
    plus, minus = means[0::2], means[1::2]
    if len(plus) < 3 or np.ptp(plus) == 0 or np.ptp(minus) == 0:
        return float("nan")
    return float(np.corrcoef(plus, minus)[0, 1])
