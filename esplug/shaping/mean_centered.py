"""Shaping ``mean-centered``: the mean reward minus the population's mean, in the units of the reward.

``u_n = m_n - mean(m)`` with ``m_n = mean_b R[n, b]``: the plain ES gradient estimate with a baseline. Its step shrinks
as the rewards of the members become equal. Source: the estimator of Salimans et al. 2017, arXiv 1703.03864.
"""

from esplug.hookspecs import hookimpl
from esplug.shaping import Floats, centered, member_means


@hookimpl
def shape(rewards: Floats) -> Floats:
    """Return float64[N] with mean 0."""
    return centered(member_means(rewards))
