"""PNG files of a report's figures, for papers."""

from collections.abc import Sequence
from pathlib import Path

from esplug.errors import UserError
from esplug.report.plots import Panel, template
from esplug.utils.text import brief

#: Pixels before scaling by 3; a scaled picture is 3.2 inches wide at 600 dots per inch.
_WIDTH, _HEIGHT, _SCALE = 640, 400, 3


def write_pngs(panels: Sequence[Panel], page: Path) -> list[Path]:
    """Write ``<page>-<panel>.png`` beside the page, on white. Return the files.

    Raises:
        UserError: kaleido or its browser is missing, or a file cannot be written.
    """
    try:
        import kaleido
    except ImportError as error:
        raise UserError(f'--png needs kaleido: pip install "esplug[png]"; the page was written to {page}') from error
    import plotly.graph_objects as go

    paths = [page.with_name(f"{page.stem}-{panel.name}.png") for panel in panels]
    white = {"template": template(False), "paper_bgcolor": "white", "plot_bgcolor": "white"}
    size = {"format": "png", "width": _WIDTH, "height": _HEIGHT, "scale": _SCALE}
    images = [
        {"fig": go.Figure(panel.figure).update_layout(white), "path": path, "opts": size}
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
