"""Shaping ``z-scores-per-prompt``: z-scores within each prompt, so that all prompts have equal weight.

``u_n = mean_b (R[n, b] - mean_n R[n, b]) / std_n R[n, b]`` with the population standard deviation; a prompt
on which all members have the same reward adds zero. This is the z-score of Qiu et al. (arXiv 2509.24372), computed
within each prompt before averaging.
"""

from esplug.hookspecs import hookimpl
from esplug.shaping import Floats, member_means, standardized


@hookimpl
def shape(rewards: Floats) -> Floats:
    """Return float64[N]: mean 0, standard deviation at most 1."""
    return member_means(standardized(rewards))
