"""Early stopping: ends a run whose evaluations no longer improve, as ``--early-stopping-patience`` asks."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from esplug.config import RunConfig, flag_of
from esplug.errors import UserError
from esplug.es.early_stopping import stall
from esplug.evaluation.figures import Evaluation
from esplug.utils.text import suggest

_BY_TASK = ("metrics", "labels")  # figures whose names are known after the first evaluation only


@dataclass(frozen=True, slots=True)
class Stop:
    """A request to end a run early.

    Attributes:
        reason: why, in one line.
        by_settings: whether it comes from ``--early-stopping-patience``, rather than from a callback.
    """

    reason: str
    by_settings: bool = False


def check_metric(config: RunConfig, splits: Collection[str], *, several_turns: bool) -> None:
    """Check that the run's evaluations, of these splits, can have the metric of early stopping.

    Raises:
        UserError: early stopping is asked for, and there is nothing to evaluate, or no such metric.
    """
    if not config.early_stopping_patience or not config.n_iterations:
        return
    if not splits:
        raise UserError(
            f"{flag_of('early_stopping_patience')} needs evaluations, and there is nothing to evaluate; "
            "give evaluation data, or leave it out"
        )
    scores = [*(f"pass@{k}" for k in config.pass_k), "reward"]
    own = [*scores, "tokens", "finished", *(["turns", "too_long", "failed"] if several_turns else [])]
    figures = {"average": scores} | dict.fromkeys(splits, own)
    known = [
        f"eval/{split}/{figure}/{part}"
        for split, names in figures.items()
        for figure in names
        for part in ("mean", "ci95_low", "ci95_high")
    ]
    if config.early_stopping_metric not in known and not _named_by_task(config.early_stopping_metric, splits):
        raise _unknown(config.early_stopping_metric, known)


def early_stop(config: RunConfig, evaluations: Sequence[Evaluation]) -> Stop | None:
    """Return whether a run stops after these evaluations, those of earlier processes included, and why.

    Only evaluations that an uninterrupted run of these settings makes count.

    Raises:
        UserError: the first evaluation lacks the metric.
    """
    patience, metric, delta = _rule(config)
    counted = [each for each in evaluations if config.evaluates_at(each.iteration)]
    if not patience or not counted:
        return None
    rows = [each.metrics() for each in counted]
    missing = 0.0 if "/labels/" in metric else math.nan
    if metric not in rows[0] and math.isnan(missing):
        raise _unknown(metric, [name for name in rows[0] if name.startswith("eval/")])
    scores = [row.get(metric, missing) for row in rows]
    found = stall(scores, delta)
    if found.waited < patience:
        return None
    by = f" by at least {delta:g}" if delta else ""
    times = f"{found.waited} evaluation{'s' * (found.waited > 1)}"
    best = ""
    if found.best is not None:
        best = f"; its best was {scores[found.best]:.4g} after {counted[found.best].iteration} updates"
    return Stop(f"{metric} did not improve{by} in {times}{best}", by_settings=True)


def described(config: RunConfig) -> str:
    """Describe the rule for people; ``""`` without one."""
    patience, metric, delta = _rule(config)
    if not patience:
        return ""
    by = f" by at least {delta:g}" if delta else ""
    return f"stops early if {metric} does not improve{by} in {patience} evaluation{'s' * (patience > 1)}"


def _rule(config: RunConfig) -> tuple[int, str, float]:
    patience = config.early_stopping_patience if config.n_iterations else 0
    return patience, config.early_stopping_metric, config.early_stopping_min_delta


def _named_by_task(metric: str, splits: Collection[str]) -> bool:
    return any(metric.startswith(f"eval/{split}/{kind}/") for split in splits for kind in _BY_TASK)


def _unknown(metric: str, known: Sequence[str]) -> UserError:
    hint = suggest(metric, known) or f"choose one of {', '.join(name for name in known if name.endswith('/mean'))}"
    return UserError(f"{flag_of('early_stopping_metric')} {metric}: the evaluations have no such metric; {hint}")
