"""Rewards: graders score completions in separate processes that can be killed, while the engines generate.

:mod:`.pool` runs in the driver, and has answers graded there (:mod:`.local_graders`) and on other nodes
(:mod:`.remote_graders`). :mod:`.grader` is the program of a grader process. A reward's time-out is enforced in
:meth:`.grader_process.GraderProcess.ask`. :mod:`.trial` refuses a reward that grades nothing. A grader process imports
only :mod:`esplug.hookspecs` and :mod:`esplug.utils`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esplug.rewards.grades import Graded as Graded
    from esplug.rewards.grades import PendingRewards as PendingRewards
    from esplug.rewards.pool import RewardPool as RewardPool

_MODULES = {"Graded": "grades", "PendingRewards": "grades", "RewardPool": "pool"}


def __getattr__(name: str) -> Any:
    """Import a class on first use: ``python -m esplug.rewards.grader`` imports this package but needs no pool."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
