"""Built-in reward shapings, one module each, and the arithmetic they share.

A shaping turns the rewards R[n, b] of member n on prompt b into one utility per member. In all built-in shapings,
members with equal rewards get equal utilities, and if all rewards are equal, all utilities are exactly zero. Runs in
the driver. May import only :mod:`esplug.hookspecs`.
"""

from math import fsum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

#: Differences below this fraction of the largest value are float rounding, not signal.
_ROUNDING = 1e-12


def member_means(rewards: Floats) -> Floats:
    """Average float64[N, B] over the prompts. Sums are exact, so the order of the prompts does not matter."""
    return np.array([fsum(row) / len(row) for row in rewards])


def centered(values: Floats) -> Floats:
    """Subtract the mean over members (axis 0). Return zeros where the members differ only by rounding."""
    deviations = values - values.mean(axis=0)
    rounding = _ROUNDING * np.abs(values).max(axis=0)
    return np.where(np.abs(deviations).max(axis=0) <= rounding, 0.0, deviations)


def standardized(values: Floats) -> Floats:
    """Scale to mean 0 and population standard deviation 1 over members (axis 0). Return zeros where all are equal."""
    deviations = centered(values)
    std = np.sqrt(np.mean(deviations**2, axis=0))
    scores: Floats = deviations / np.where(std == 0.0, 1.0, std)
    return scores
