"""Shaping ``z-scores``: z-scores of the members' mean rewards within the population.

``u_n = (m_n - mean(m)) / std(m)`` with ``m_n = mean_b R[n, b]`` and the population standard deviation; zeros
if all m are equal. Source: Qiu et al., "Evolution Strategies at Scale", arXiv 2509.24372.
"""

from esplug.hookspecs import hookimpl
from esplug.shaping import Floats, member_means, standardized


@hookimpl
def shape(rewards: Floats) -> Floats:
    """Return float64[N]: mean 0, standard deviation 1, or all zeros."""
    return standardized(member_means(rewards))
