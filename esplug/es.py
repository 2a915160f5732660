"""The mathematics of Evolution Strategies: members, coefficients, diagnostics. No input or output.

One iteration moves the weights by ``alpha/N * sum_i utility_i * sign_i * eps_i`` (Salimans et al. 2017,
arXiv 1703.03864, with shaped rewards as utilities; at LLM scale Qiu et al. 2025, arXiv 2509.24372).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from esplug.noise import member_seed

if TYPE_CHECKING:
    from esplug.config import Schedule

FloatArray: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

#: Weight below which momentum forgets an earlier iteration, whose noise would have to be made again for it.
FORGOTTEN = 0.01


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


def coefficients(alpha: float, utilities: FloatArray, members: list[Member]) -> list[float]:
    """Return float32 coefficient ``alpha/N * utility * sign`` of each member's noise in the update."""
    signs = np.array([member.sign for member in members], dtype=np.float64)
    exact = alpha / len(members) * np.asarray(utilities, dtype=np.float64) * signs
    return [float(value) for value in exact.astype(np.float32)]


def scheduled(schedule: "Schedule", start: float, end: float, done: float) -> float:
    """Return a setting that goes from ``start`` to ``end``, when a share ``done`` (0 to 1) of the run is over."""
    if schedule == "constant":
        return start
    share = done if schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
    return start + (end - start) * share


def momentum_weights(momentum: float) -> list[float]:
    """Return what the newest update and those before it count: 1, and each time times ``momentum``.

    The last is the last that is not below :data:`FORGOTTEN`.

    With them an iteration moves the weights by ``sum_age momentum**age * update_age``: the velocity of heavy-ball
    momentum (Polyak 1964, without damping), but for its tail, and without keeping it, as updates come from seeds.
    """
    weights = [1.0]
    while (weight := weights[-1] * momentum) >= FORGOTTEN:  # products are the same on any machine, powers may not be
        weights.append(weight)
    return weights


def mirrored_correlation(rewards: FloatArray) -> float:
    """Correlate the mean rewards of mirrored pairs: the diagnostic for sigma.

    Near -1 the reward is linear within sigma, so the pair's difference is all signal. Near +1 curvature
    dominates and sigma is too large. NaN where either side does not vary, or with fewer than three pairs.

    Args:
        rewards: float64[N, B], members 2k and 2k+1 mirrored.
    """
    means = rewards.mean(axis=1)
    plus, minus = means[0::2], means[1::2]
    if len(plus) < 3 or np.ptp(plus) == 0 or np.ptp(minus) == 0:
        return float("nan")
    return float(np.corrcoef(plus, minus)[0, 1])
