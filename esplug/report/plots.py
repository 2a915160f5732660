"""Plots with plotly: lines with bands, and stacked bars."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from esplug.loggers.metrics_file import Row
from esplug.report.curves import Curve, blocks, curve, rounded
from esplug.report.run_data import RunData
from esplug.report.text import visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Colours for colour-blind readers (Okabe and Ito 2008), without the two that are hard to see on white or black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_REST = "#8c8c8c"
_DASHES = ("solid", "dash", "dot", "dashdot")
#: Label within the run, rows, metric, and the metrics of its lower and upper bound.
Series = tuple[str, Sequence[Row], str, tuple[str, str] | None]


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure.

    Attributes:
        name: part of file names, such as ``evaluation``.
        title: subject of the figure.
        caption: how to read it.
        figure: plotly figure without a template; the page adds its light or dark one.
    """

    name: str
    title: str
    caption: str
    figure: "go.Figure"


def lines(
    runs: Sequence[RunData],
    name: str,
    title: str,
    caption: str,
    unit: str,
    series: Callable[[RunData], list[Series]],
    marked: bool = False,
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
    import plotly.graph_objects as go

    hover = "%{y:.4g}" + (" [%{customdata[0]:.4g}, %{customdata[1]:.4g}]" if line.low else "")
    bars = None
    if line.low and len(line.x) > 1:
        figure.add_trace(
            go.Scatter(
                x=[*line.x, *reversed(line.x)],
                y=[*line.high, *reversed(line.low)],
                fill="toself",
                fillcolor=f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:], 16)},0.15)",
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
                legendgroup=label,
            )
        )
    elif line.low:
        above, below = line.high[0] - line.y[0], line.y[0] - line.low[0]
        bars = {"type": "data", "symmetric": False, "array": [above], "arrayminus": [below]}
    figure.add_trace(
        go.Scatter(
            x=line.x,
            y=line.y,
            name=label or "mean",
            legendgroup=label,
            mode="lines+markers" if marked else "lines",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"size": 7},
            error_y=bars,
            customdata=list(zip(line.low, line.high, strict=True)) if line.low else None,
            hovertemplate=hover,
        )
    )


def bars(
    steps: Sequence[int],
    parts: Mapping[str, list[float | None]],
    name: str,
    title: str,
    caption: str,
    unit: str,
    short: str,
) -> Panel:
    """Draw stacked bars, one per iteration or, in a long run, per block of iterations."""
    import plotly.graph_objects as go

    figure, cut = _empty(unit), blocks(len(steps))
    per_block = cut[0].stop - cut[0].start if cut else 1
    for (label, values), colour in zip(parts.items(), cycle([*COLOURS, _REST]), strict=False):
        means = [_mean(values[part]) for part in cut]
        if not any(means):
            continue
        figure.add_trace(
            go.Bar(
                x=[steps[part.start] for part in cut],
                y=means,
                name=html.escape(visible(label, 40)),
                marker={"color": _REST if label in ("idle", "others") else colour, "line": {"width": 0}},
                hovertemplate=f"%{{y:.4g}} {short}",
            )
        )
    figure.update_layout(barmode="stack", bargap=0.15 if len(cut) < 60 else 0)
    return Panel(name, title, caption + _block_note(per_block), figure)


def _empty(unit: str) -> "go.Figure":
    import plotly.graph_objects as go

    return go.Figure(
        layout={
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
    )


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


def _mean(values: Sequence[float | None]) -> float | None:
    """Average a block; missing values count as 0, such as the evaluation's seconds in most iterations."""
    known = [value for value in values if value is not None]
    return rounded(sum(known) / len(values)) if known else None


def _block_note(per_block: int) -> str:
    return f" Each point is {per_block} iterations." if per_block > 1 else ""
