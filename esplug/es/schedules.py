"""Schedules of sigma and alpha over a run."""

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def scheduled(schedule: Schedule, start: float, end: float, done: float) -> float:
    """Return the value of a setting that goes from ``start`` to ``end`` after a share ``done`` (0 to 1) of the run."""
    if schedule == "constant":
        return start
    share = done if schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
    return start + (end - start) * share
