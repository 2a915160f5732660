"""Shaping ``centered-ranks``: ranks of the members' mean rewards, so that outliers have no effect.

``u_n = rank(m_n) / (N - 1) - 1/2`` with ``m_n = mean_b R[n, b]`` and ranks from 0 (worst) to N - 1 (best); tied
members share the average of their ranks. Source: Salimans et al. 2017, "Evolution Strategies as a Scalable
Alternative to Reinforcement Learning", arXiv 1703.03864 (rank-based fitness shaping).
"""

import numpy as np

from esplug.hookspecs import hookimpl
from esplug.shaping import Floats, member_means


@hookimpl
def shape(rewards: Floats) -> Floats:
    """Return float64[N] in [-0.5, 0.5]; zero for a single member."""
    _, tie, size = np.unique(member_means(rewards), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(size) - (size + 1) / 2)[tie]
    return ranks / max(len(ranks) - 1, 1) - (0.5 if len(ranks) > 1 else 0.0)
