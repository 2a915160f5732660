"""Early stopping: the rule that ends a run whose evaluations no longer improve. Pure functions of the scores so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stall:
    """How long a sequence of scores has not improved.

    Attributes:
        best: position of the last score that was an improvement; ``None`` if there is none.
        waited: number of scores after it.
    """

    best: int | None
    waited: int


def stall(scores: Sequence[float], min_delta: float = 0.0) -> Stall:
    """Find the last improvement in a sequence of scores, where higher is better.

    A score is an improvement if it is greater than the last improvement, and by at least ``min_delta``. The first
    score that is a number is an improvement; NaN never is.
    """
    best: int | None = None
    for position, score in enumerate(scores):
        increase = math.inf if best is None else score - scores[best]
        if not math.isnan(score) and increase > 0 and increase >= min_delta:
            best = position
    return Stall(best, len(scores) - 1 - best if best is not None else len(scores))
