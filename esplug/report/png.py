"""A report's figures as pictures, for papers."""

from collections.abc import Sequence
from pathlib import Path

from esplug.errors import UserError
from esplug.report.plots import Panel, template
from esplug.utils.text import brief

#: Pixels of a picture before scaling; scaled threefold it prints 3 inches wide at 600 dots an inch.
_WIDTH, _HEIGHT, _SCALE = 640, 400, 3


def write_pngs(panels: Sequence[Panel], page: Path) -> list[Path]:
    """Write ``<page's name>-<panel's name>.png`` beside the page, on white. Returns the files.

    Raises:
        UserError: kaleido or a browser for it is missing, or a file cannot be written.
    """
    try:
        import kaleido
    except ImportError as error:
        raise UserError(f'--png: needs kaleido: pip install "esplug[png]"; the page is written: {page}') from error
    import plotly.graph_objects as go

    paths = [page.with_name(f"{page.stem}-{panel.name}.png") for panel in panels]
    white = {"template": template(False), "paper_bgcolor": "white", "plot_bgcolor": "white"}
    size = {"format": "png", "width": _WIDTH, "height": _HEIGHT, "scale": _SCALE}
    pictures = [
        {"fig": go.Figure(panel.figure).update_layout(white), "path": path, "opts": size}
        for panel, path in zip(panels, paths, strict=True)
    ]
    try:  # without MathJax, which would be fetched
        kaleido.write_fig_from_object_sync(pictures, cancel_on_error=True, kopts={"mathjax": False})
    except Exception as error:  # kaleido's and the browser's are of many kinds
        raise UserError(
            f"--png: no pictures ({type(error).__name__}: {brief(str(error), 120)}); kaleido needs Chrome or Chromium: "
            f"`apt install chromium`, or `plotly_get_chrome`; the page is written: {page}"
        ) from error
    return paths
