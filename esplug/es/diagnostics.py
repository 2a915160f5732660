"""Diagnostics of a population's rewards."""

import numpy as np

from esplug.es.update import FloatArray


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
