"""Curves of a metric over iterations, thinned for a screen."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from esplug.loggers.metrics_file import Row

LIMIT = 400  # points of a curve; in a longer run, each point is a block of iterations


@dataclass(frozen=True, slots=True)
class Curve:
    """A line and its band.

    Attributes:
        x: first step of each block (number of updates made before).
        y: mean of each block.
        low, high: least lower bound and greatest upper bound of each block; empty without a band.
        per_block: measurements per point.
    """

    x: list[int]
    y: list[float]
    low: list[float]
    high: list[float]
    per_block: int


def blocks(count: int, limit: int = LIMIT) -> list[slice]:
    """Cut ``count`` measurements into at most ``limit`` blocks; the last block may be smaller."""
    size = max(1, -(-count // limit))
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def curve(rows: Sequence[Row], metric: str, bounds: tuple[str, str] | None = None) -> Curve:
    """Return a metric's curve. Rows without the metric are left out; rows without bounds use the metric itself."""
    known = [row for row in rows if row.get(metric) is not None]
    cut = blocks(len(known))
    banded = bounds is not None and any(name in row.values for row in known for name in bounds)
    low: list[float] = []
    high: list[float] = []
    if bounds is not None and banded:
        low = [min(row.values.get(bounds[0], row.values[metric]) for row in known[part]) for part in cut]
        high = [max(row.values.get(bounds[1], row.values[metric]) for row in known[part]) for part in cut]
    return Curve(
        x=[known[part.start].step for part in cut],
        y=[rounded(fmean(row.values[metric] for row in known[part])) for part in cut],
        low=[rounded(bound) for bound in low],
        high=[rounded(bound) for bound in high],
        per_block=cut[0].stop - cut[0].start if cut else 1,
    )


def rounded(value: float) -> float:
    """Round to six significant digits, more than a screen shows, to keep the page small."""
    return float(f"{value:.6g}")
