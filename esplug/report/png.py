"""PNG files of a report's figures, for papers, drawn with plotly."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esplug.errors import UserError
from esplug.report.plots import Line, Panel
from esplug.utils.text import brief

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Pixels before scaling by 3; a scaled picture is 3.2 inches wide at 600 dots per inch.
_WIDTH, _HEIGHT, _SCALE = 640, 400, 3
_POINTS = 400  # of a curve
_DASHES = ("solid", "dash", "dot", "dashdot")
_FAINT = "#e4e4e4"
_AXIS = {"gridcolor": _FAINT, "linecolor": _FAINT, "zerolinecolor": _FAINT, "ticks": "", "automargin": True}


def write_pngs(panels: Sequence[Panel], page: Path, smoothing: float) -> list[Path]:
    """Write ``<page>-<panel>.png`` beside the page, on white. Return the files.

    Raises:
        UserError: kaleido, plotly or a browser is missing, or a file cannot be written.
    """
    try:
        import kaleido
        import plotly.graph_objects  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'--png needs kaleido and plotly: pip install "esplug[png]"; the page was written to {page}'
        ) from error
    paths = [page.with_name(f"{page.stem}-{panel.name}.png") for panel in panels]
    size = {"format": "png", "width": _WIDTH, "height": _HEIGHT, "scale": _SCALE}
    images = [
        {"fig": figure(panel.thinned(_POINTS), smoothing), "path": path, "opts": size}
        for panel, path in zip(panels, paths, strict=True)
    ]
    try:  # without MathJax, which kaleido would download
        kaleido.write_fig_from_object_sync(images, cancel_on_error=True, kopts={"mathjax": False})
    except Exception as error:  # kaleido and the browser raise many types
        raise UserError(
            f"--png: no figures written ({type(error).__name__}: {brief(str(error), 120)}); kaleido needs Chrome or "
            f"Chromium: `apt install chromium` or `plotly_get_chrome`; the page was written to {page}"
        ) from error
    return paths


def figure(panel: Panel, smoothing: float) -> "go.Figure":
    """Return a panel as plotly's figure. Plotly reads labels as markup, so they are escaped."""
    import plotly.graph_objects as go

    layout = {
        "template": None,
        "margin": {"l": 50, "r": 14, "t": 10, "b": 44},
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13, "color": "#333333"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        "showlegend": len(panel.lines) + len(panel.bars) > 1,
        "barmode": "stack",
        "xaxis": _AXIS | {"title": {"text": "iteration"}, "rangemode": "tozero", "tickformat": "d"},
        "yaxis": _AXIS | {"title": {"text": html.escape(panel.unit)}},
    }
    drawn = go.Figure(layout=layout)
    for line in panel.lines:
        _add(drawn, line, smoothing)
    for part in panel.bars:
        marker = {"color": part.colour, "line": {"width": 0}}
        drawn.add_bar(x=panel.x, y=part.y, name=html.escape(part.label), marker=marker)
    return drawn


def _add(drawn: "go.Figure", line: Line, smoothing: float) -> None:
    """Add a line with its band; one or two points have error bars, and a smoothed line keeps the raw one behind it."""
    style: dict[str, Any] = {"mode": "lines+markers" if line.evaluated else "lines", "name": html.escape(line.label)}
    style |= {"line": {"color": line.colour, "dash": _DASHES[line.dash], "width": 2}, "marker": {"size": 7}}
    if len(line.x) <= 2:
        style["mode"] = "markers"
        if line.low:
            above, below = ([abs(b - y) for b, y in zip(bound, line.y, strict=True)] for bound in (line.high, line.low))
            style["error_y"] = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
        style["marker"] = {"size": 7, "color": line.colour}
        drawn.add_scatter(x=line.x, y=line.y, **style)
        return
    if line.low:
        channels = ",".join(str(int(line.colour[i : i + 2], 16)) for i in (1, 3, 5))
        band: dict[str, Any] = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "showlegend": False}
        band["fillcolor"] = f"rgba({channels},0.15)"
        drawn.add_scatter(x=[*line.x, *reversed(line.x)], y=[*line.high, *reversed(line.low)], **band)
    if smoothing and not line.evaluated:
        drawn.add_scatter(x=line.x, y=line.y, **style | {"opacity": 0.35, "showlegend": False})
        drawn.add_scatter(x=line.x, y=line.smoothed(smoothing), **style)
    else:
        drawn.add_scatter(x=line.x, y=line.y, **style)
