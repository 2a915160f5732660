"""Coefficients of an update, by which each member's noise is multiplied before it is added to the weights.

One iteration moves the weights by ``alpha/N * sum_i utility_i * sign_i * eps_i`` (Salimans et al. 2017,
arXiv 1703.03864, with shaped rewards as utilities; at LLM scale Qiu et al. 2025, arXiv 2509.24372).
"""

from typing import Any, TypeAlias

import numpy as np

from esplug.es.members import Member

FloatArray: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

#: Weight below which momentum ignores an earlier update, to save generating its noise again.
MIN_MOMENTUM_WEIGHT = 0.01


def coefficients(alpha: float, utilities: FloatArray, members: list[Member]) -> list[float]:
    """Return float32 coefficient ``alpha/N * utility * sign`` of each member's noise in the update."""
    signs = np.array([member.sign for member in members], dtype=np.float64)
    exact = alpha / len(members) * np.asarray(utilities, dtype=np.float64) * signs
    return [float(value) for value in exact.astype(np.float32)]


def normalized(utilities: FloatArray) -> FloatArray:
    """Scale utilities to a root mean square of 1. Zeros stay zeros.

    An update then has the norm ``alpha * sqrt(weights / N)`` in expectation, whatever the reward shaping: independent
    noise of variance 1 adds up to ``sqrt(sum_i coefficient_i**2)`` per weight.
    """
    largest = np.abs(utilities).max()
    if largest == 0.0:
        return utilities
    scaled = utilities / largest  # else squares of very large or small utilities would overflow or vanish
    unit: FloatArray = scaled / np.sqrt(np.mean(scaled**2))
    return unit


def momentum_weights(momentum: float) -> list[float]:
    """Return the weights of the newest update and the earlier ones: 1, ``momentum``, ``momentum**2`` and so on.

    They end before the first one below :data:`MIN_MOMENTUM_WEIGHT`. An iteration moves the model's weights by
    ``sum_age momentum**age * update_age``, the velocity of heavy-ball momentum (Polyak 1964, without damping) without
    its tail. No velocity is stored, because updates can be computed again from their seeds.
    """
    weights = [1.0]
    while weights[-1] * momentum >= MIN_MOMENTUM_WEIGHT:  # unlike powers, products are equal on all machines
        weights.append(weights[-1] * momentum)
    return weights
