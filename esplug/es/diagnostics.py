"""Diagnostics of a population's rewards."""

import numpy as np

from esplug.es.update import FloatArray


def mirrored_correlation(rewards: FloatArray) -> float:
    """Return the correlation of mirrored members' mean rewards, a diagnostic for sigma.

    Near -1, the reward is linear within sigma, so the pairs' differences are all signal. Near +1, curvature dominates
    and sigma is too large. NaN with fewer than three pairs, or if either side does not vary.

    Args:
        rewards: float64[N, B], members 2k and 2k+1 mirrored.
    """
    means = rewards.mean(axis=1)
    plus, minus = means[0::2], means[1::2]
    if len(plus) < 3 or np.ptp(plus) == 0 or np.ptp(minus) == 0:
        return float("nan")
    return float(np.corrcoef(plus, minus)[0, 1])
