"""Plots with plotly: lines with bands, and stacked bars, thinned for a screen."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

from esplug.loggers.metrics_file import Row
from esplug.report.run_data import RunData
from esplug.report.text import visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

LIMIT = 400  # points of a curve; in a longer run, each point is a block of iterations
#: Colours for colour-blind readers (Okabe and Ito 2008), without the two that are hard to see on white or black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_REST = "#8c8c8c"
_DASHES = ("solid", "dash", "dot", "dashdot")
#: Label within the run, rows, metric, and the metrics of its lower and upper bound.
Series: TypeAlias = tuple[str, Sequence[Row], str, tuple[str, str] | None]
SeriesOf: TypeAlias = Callable[[RunData], list[Series]]
Values: TypeAlias = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Panel:
    """A figure without a template; the page adds its light or dark one. The name becomes part of file names."""

    name: str
    title: str
    caption: str
    figure: "go.Figure"


@dataclass(frozen=True, slots=True)
class Curve:
    """A line and its band.

    Attributes:
        x: first step of each block.
        y: mean of each block.
        low, high: least lower bound and greatest upper bound of each block; empty without a band.
        per_block: measurements per block.
    """

    x: list[int]
    y: list[float]
    low: list[float]
    high: list[float]
    per_block: int


def curve(rows: Sequence[Row], metric: str, bounds: tuple[str, str] | None = None) -> Curve:
    """Return a metric's curve. Rows without the metric are left out; rows without bounds use the metric itself."""
    known = [row for row in rows if row.get(metric) is not None]
    blocks, per_block = _blocks(len(known))
    low: list[float] = []
    high: list[float] = []
    if bounds is not None and any(name in row.values for row in known for name in bounds):
        low = [_rounded(min(row.values.get(bounds[0], row.values[metric]) for row in known[part])) for part in blocks]
        high = [_rounded(max(row.values.get(bounds[1], row.values[metric]) for row in known[part])) for part in blocks]
    y = [_rounded(fmean(row.values[metric] for row in known[part])) for part in blocks]
    return Curve([known[part.start].step for part in blocks], y, low, high, per_block)


def lines(
    runs: Sequence[RunData], name: str, title: str, caption: str, unit: str, series: SeriesOf, marked: bool = False
) -> Panel:
    """Draw lines with bands. Several runs have one colour each; in a single run, each line has its own."""
    figure, per_block = _empty(unit), 1
    for number, run in enumerate(runs):
        for index, (name_in_run, rows, metric, bounds) in enumerate(series(run)):
            line = curve(rows, metric, bounds)
            if not line.x:
                continue
            per_block = max(per_block, line.per_block)
            label = " ".join(filter(None, [run.label if len(runs) > 1 else "", name_in_run]))
            colour = COLOURS[(number if len(runs) > 1 else index) % len(COLOURS)]
            dash = _DASHES[(index + number // len(COLOURS)) % len(_DASHES)]
            _add(figure, line, html.escape(visible(label, 60)), colour, dash, marked or len(line.x) == 1)
    figure.update_layout(showlegend=sum(trace.showlegend is not False for trace in figure.data) > 1)
    return Panel(name, title, caption + _block_note(per_block), figure)


def _add(figure: "go.Figure", line: Curve, label: str, colour: str, dash: str, marked: bool) -> None:
    """Add a line, with its bounds as a band, or as an error bar if it is a single point."""
    style: dict[str, Any] = {"mode": "lines+markers" if marked else "lines", "hovertemplate": "%{y:.4g}"}
    if line.low:
        style["hovertemplate"] += " [%{customdata[0]:.4g}, %{customdata[1]:.4g}]"
        style["customdata"] = list(zip(line.low, line.high, strict=True))
    if line.low and len(line.x) > 1:
        fill = f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:], 16)},0.15)"
        band: dict[str, Any] = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": fill}
        band |= {"hoverinfo": "skip", "showlegend": False, "legendgroup": label}
        figure.add_scatter(x=[*line.x, *reversed(line.x)], y=[*line.high, *reversed(line.low)], **band)
    elif line.low:
        above, below = line.high[0] - line.y[0], line.y[0] - line.low[0]
        style["error_y"] = {"type": "data", "symmetric": False, "array": [above], "arrayminus": [below]}
    style |= {"line": {"color": colour, "dash": dash, "width": 2}, "marker": {"size": 7}}
    figure.add_scatter(x=line.x, y=line.y, name=label or "mean", legendgroup=label, **style)


def bars(
    rows: Sequence[Row], parts: Mapping[str, Values], name: str, title: str, caption: str, unit: str, short: str
) -> Panel:
    """Draw stacked bars, one per iteration or, in a long run, per block of iterations."""
    figure, (blocks, per_block) = _empty(unit), _blocks(len(rows))
    for (label, values), colour in zip(parts.items(), cycle([*COLOURS, _REST]), strict=False):
        means = [_mean(values[part]) for part in blocks]
        if any(means):
            marker = {"color": _REST if label in ("idle", "others") else colour, "line": {"width": 0}}
            style = {"name": html.escape(visible(label, 40)), "hovertemplate": f"%{{y:.4g}} {short}"}
            figure.add_bar(x=[rows[part.start].step for part in blocks], y=means, marker=marker, **style)
    figure.update_layout(barmode="stack", bargap=0.15 if len(blocks) < 60 else 0)
    return Panel(name, title, caption + _block_note(per_block), figure)


def _empty(unit: str) -> "go.Figure":
    import plotly.graph_objects as go

    layout = {
        "template": None,
        "margin": {"l": 50, "r": 14, "t": 10, "b": 44},
        "hovermode": "x unified",
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "xanchor": "left",
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        "showlegend": True,
        "xaxis": {"title": {"text": "iteration"}, "rangemode": "tozero", "tickformat": "d"},
        "yaxis": {"title": {"text": unit}},
    }
    return go.Figure(layout=layout)


def template(dark: bool) -> dict[str, Any]:
    """Return the colours and fonts of all figures, as a plotly template."""
    ink, faint = ("#d4d4d4", "#3a3d41") if dark else ("#333333", "#e4e4e4")
    axis = {"gridcolor": faint, "linecolor": faint, "zerolinecolor": faint, "ticks": "", "automargin": True}
    return {
        "layout": {
            "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13, "color": ink},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": "#26282b" if dark else "#ffffff", "font": {"color": ink}, "bordercolor": faint},
        }
    }


def _blocks(count: int) -> tuple[list[slice], int]:
    """Cut ``count`` measurements into at most :data:`LIMIT` blocks. Return them and their size."""
    size = max(1, -(-count // LIMIT))
    return [slice(first, min(first + size, count)) for first in range(0, count, size)], size


def _rounded(value: float) -> float:
    """Round to six significant digits, more than a screen shows, to keep the page small."""
    return float(f"{value:.6g}")


def _mean(values: Values) -> float | None:
    """Average a block; missing values count as 0, such as the evaluation's seconds in most iterations."""
    known = [value for value in values if value is not None]
    return _rounded(sum(known) / len(values)) if known else None


def _block_note(per_block: int) -> str:
    return f" Each point is {per_block} iterations." if per_block > 1 else ""
