"""Shaping checks: utilities of rewards of several sizes, values and orders."""

from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pluggy

from esplug.authoring.conformance.checklist import Check, Checklist, Fault, Report, loads, resolved

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

_SHAPES = ((2, 1), (2, 3), (3, 1), (16, 8), (30, 200))  # members, prompts


def shaping_checks(plugin: object, report: Report | None = None) -> list[Check]:
    """Check a shaping as :func:`esplug.testing.check_shaping` does, and return failed checks too."""
    checks = Checklist(report)
    _, load = resolved("shaping", plugin)
    if (hooks := checks.run("loads", partial(loads, load))) is None:
        return checks.results
    drawn = [np.random.default_rng(shape).normal(size=shape) for shape in _SHAPES]
    for rewards in drawn:
        members, prompts = rewards.shape
        checks.run(f"{members} members, {prompts} prompt{'s' * (prompts > 1)}", partial(_plain, hooks, rewards))
    few_values = np.random.default_rng(0).integers(2, size=(16, 8)).astype(np.float64)
    checks.run("rewards of 0 and 1", partial(_plain, hooks, few_values))
    checks.run("small and large rewards", partial(_plain, hooks, drawn[3] * np.logspace(-9, 9, 16)[:, None]))
    checks.run("equal rewards", partial(_equal, hooks))
    checks.run("rewards are left alone", partial(_untouched, hooks, drawn[3]))
    checks.run("utilities repeat", partial(_repeated, hooks, drawn[3]))
    checks.run("order of rewards", partial(_order, hooks))
    return checks.results


def _utilities(hooks: pluggy.HookRelay, rewards: Floats) -> Floats:
    """Shape a copy of the rewards, and check that a run would accept the utilities."""
    result = hooks.shape(rewards=rewards.copy())
    try:
        utilities = np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError):
        raise Fault(f"shape returned {type(result).__name__}; it must return float64[N]") from None
    if utilities.shape != (len(rewards),):
        raise Fault(f"{list(utilities.shape)} utilities of {list(rewards.shape)} rewards; it must return float64[N]")
    if not np.isfinite(utilities).all():
        raise Fault(f"utilities that are not finite: {utilities.tolist()}")
    return utilities


def _plain(hooks: pluggy.HookRelay, rewards: Floats) -> tuple[bool, str]:
    utilities = _utilities(hooks, rewards)
    return True, f"utilities from {utilities.min():.3g} to {utilities.max():.3g}"


def _equal(hooks: pluggy.HookRelay) -> tuple[bool, str]:
    moved = [value for value in (0.0, 1.0, 0.1, -3.7) if _utilities(hooks, np.full((7, 3), value)).any()]
    if moved:
        return True, f"finite, but not all zero where all rewards are {moved[0]:g}: such a batch moves the weights"
    return True, "all utilities are zero: no update"


def _untouched(hooks: pluggy.HookRelay, rewards: Floats) -> tuple[bool, str]:
    given = rewards.copy()
    hooks.shape(rewards=given)
    if not np.array_equal(given, rewards):
        raise Fault("shape changes its argument, which the run logs afterwards; work on a copy")
    return True, "unchanged"


def _repeated(hooks: pluggy.HookRelay, rewards: Floats) -> tuple[bool, str]:
    if not np.array_equal(_utilities(hooks, rewards), _utilities(hooks, rewards)):
        raise Fault("the same rewards got different utilities, so a run could be neither resumed nor repeated")
    return True, "the same for the same rewards"


def _order(hooks: pluggy.HookRelay) -> tuple[bool, str]:
    """Report whether a higher reward on every prompt can lower a member's utility, which some shapings intend."""
    ascending = np.arange(10.0)[:, None] + np.array([[0.0, 0.25, 0.5]])
    if (np.diff(_utilities(hooks, ascending)) < 0).any():
        return True, "a member that earns more on every prompt can get a lower utility; is that intended?"
    return True, "a member that earns more on every prompt gets no lower utility"
