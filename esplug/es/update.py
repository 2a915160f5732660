"""The coefficients of an update: what each member's noise adds to the weights.

One iteration moves the weights by ``alpha/N * sum_i utility_i * sign_i * eps_i`` (Salimans et al. 2017,
arXiv 1703.03864, with shaped rewards as utilities; at LLM scale Qiu et al. 2025, arXiv 2509.24372).
"""

from typing import Any, TypeAlias

import numpy as np

from esplug.es.members import Member

FloatArray: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


#: Weight below which momentum forgets an earlier iteration, whose noise would have to be made again for it.
FORGOTTEN = 0.01


def coefficients(alpha: float, utilities: FloatArray, members: list[Member]) -> list[float]:
    """Return float32 coefficient ``alpha/N * utility * sign`` of each member's noise in the update."""
    signs = np.array([member.sign for member in members], dtype=np.float64)
    exact = alpha / len(members) * np.asarray(utilities, dtype=np.float64) * signs
    return [float(value) for value in exact.astype(np.float32)]


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
