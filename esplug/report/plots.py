"""Plots as data: lines with bands, and stacked bars. The page's script draws them, and :mod:`esplug.report.png`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from statistics import fmean
from typing import Any, TypeAlias

from esplug.loggers.metrics_file import Row
from esplug.report.run_data import RunData
from esplug.report.text import visible

#: Colours for colour-blind readers (Okabe and Ito 2008), without the two that are hard to see on white or black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_REST = "#8c8c8c"
_N_DASHES = 4
_LARGEST = 1e100
#: Label within the run, rows, metric, and the metrics of its lower and upper bound.
Series: TypeAlias = tuple[str, Sequence[Row], str, tuple[str, str] | None]
SeriesOf: TypeAlias = Callable[[RunData], list[Series]]
Values: TypeAlias = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Line:
    """A curve with a band; one or two points are drawn as points with error bars.

    Attributes:
        dash: kind of line, 0 (solid) to 3.
        x: steps.
        y: values.
        low, high: bounds; empty without a band.
        evaluated: whether its points are evaluations, which are marked and never smoothed.
    """

    label: str
    colour: str
    dash: int
    x: Sequence[int]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    evaluated: bool

    def smoothed(self, weight: float) -> list[float]:
        """Return the debiased exponential moving average of y, as in TensorBoard.

        ``s_t = sum_i w^(t-i) y_i / sum_i w^(t-i)`` over i = 0, ..., t, with ``weight`` w in [0, 1).
        """
        smooth, total, count = [], 0.0, 0.0
        for value in self.y:
            total, count = weight * total + value, weight * count + 1
            smooth.append(total / count)
        return smooth


@dataclass(frozen=True, slots=True)
class Bars:
    """One part of stacked bars; y has a value for each x of its panel."""

    label: str
    colour: str
    y: Values


@dataclass(frozen=True, slots=True)
class Panel:
    """A figure: lines, or stacked bars at steps ``x``. The name becomes part of file names.

    Attributes:
        unit: of the y axis.
        short: unit after a value of a bar, or empty.
    """

    name: str
    title: str
    caption: str
    unit: str
    lines: tuple[Line, ...] = ()
    bars: tuple[Bars, ...] = ()
    x: Sequence[int] = ()
    short: str = ""

    def thinned(self, limit: int) -> "Panel":
        """Average blocks of consecutive points, so that no line has more than ``limit``. Bands keep their extremes."""
        longest = max([len(self.x), *(len(line.x) for line in self.lines)])
        if longest <= limit:
            return self
        note = f" Each point is {-(-longest // limit)} iterations."
        blocks = _blocks(len(self.x), limit)
        return replace(
            self,
            caption=self.caption + note,
            lines=tuple(_thinned(line, limit) for line in self.lines),
            bars=tuple(replace(part, y=[_mean(part.y[block]) for block in blocks]) for part in self.bars),
            x=[self.x[block.start] for block in blocks],
        )

    def drawing(self) -> dict[str, Any]:
        """Return what the page's script draws."""
        return {name: value for name, value in asdict(self).items() if name in ("unit", "lines", "bars", "x", "short")}


def curve(rows: Sequence[Row], metric: str, bounds: tuple[str, str] | None = None) -> tuple[list[Any], ...]:
    """Return steps, values, and lower and upper bounds of a metric.

    Rows without the metric are left out; rows without bounds use the metric itself.
    """
    known = [row for row in rows if row.get(metric) is not None]
    columns: list[list[Any]] = [[row.step for row in known], [_rounded(row.values[metric]) for row in known]]
    if bounds is None or not any(name in row.values for row in known for name in bounds):
        return (*columns, [], [])
    return (*columns, *([_rounded(row.values.get(name, row.values[metric])) for row in known] for name in bounds))


def lines(runs: Sequence[RunData], name: str, title: str, caption: str, unit: str, series: SeriesOf) -> Panel:
    """Draw lines with bands. Several runs have one colour each; in a single run, each line has its own."""
    found = []
    for number, run in enumerate(runs):
        for index, (name_in_run, rows, metric, bounds) in enumerate(series(run)):
            x, y, low, high = curve(rows, metric, bounds)
            label = " ".join(filter(None, [run.label if len(runs) > 1 else "", name_in_run]))
            colour = COLOURS[(number if len(runs) > 1 else index) % len(COLOURS)]
            dash = (index + number // len(COLOURS)) % _N_DASHES
            if x:
                found.append(Line(visible(label, 60) or "mean", colour, dash, x, y, low, high, rows is run.evaluations))
    return Panel(name, title, caption, unit, lines=tuple(found))


def bars(
    rows: Sequence[Row], parts: Mapping[str, Values], name: str, title: str, caption: str, unit: str, short: str
) -> Panel:
    """Draw stacked bars, one per iteration."""
    found = []
    for (label, values), colour in zip(parts.items(), cycle([*COLOURS, _REST]), strict=False):
        if any(values):
            colour = _REST if label in ("idle", "others") else colour
            rounded = [None if value is None else _rounded(value) for value in values]
            found.append(Bars(visible(label, 40), colour, rounded))
    return Panel(name, title, caption, unit, bars=tuple(found), x=[row.step for row in rows], short=short)


def _thinned(line: Line, limit: int) -> Line:
    blocks = _blocks(len(line.x), limit)
    return replace(
        line,
        x=[line.x[block.start] for block in blocks],
        y=[_rounded(fmean(line.y[block])) for block in blocks],
        low=[min(line.low[block]) for block in blocks] if line.low else [],
        high=[max(line.high[block]) for block in blocks] if line.high else [],
    )


def _blocks(count: int, limit: int) -> list[slice]:
    """Cut ``count`` points into at most ``limit`` blocks."""
    size = max(1, -(-count // limit))
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def _rounded(value: float) -> float:
    """Round to six significant digits, more than a screen shows, to keep the page small. JSON has no infinity."""
    return float(f"{max(-_LARGEST, min(_LARGEST, value)):.6g}")


def _mean(values: Values) -> float | None:
    """Average a block; missing values count as 0, such as the evaluation's seconds in most iterations."""
    known = [value for value in values if value is not None]
    return _rounded(sum(known) / len(values)) if known else None
