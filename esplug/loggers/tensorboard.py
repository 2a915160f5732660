"""Logger ``tensorboard``: event files in ``tensorboard/`` in the run directory.

Metrics are scalars. The settings and the samples of every evaluation are under Text; model output is escaped, so that
it is not rendered as Markdown or HTML. A resumed run tells TensorBoard to hide the steps that it logs again.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from esplug.config import RunConfig
from esplug.hookspecs import hookimpl
from esplug.loggers.metrics_file import first_evaluation
from esplug.loggers.services import COLUMNS, require, sample_tables

_MARKUP = re.compile(r"[^\w\s]|_", re.ASCII)


class TensorboardLogger:
    """The event files of one run, written by torch, which vLLM requires."""

    def __init__(self) -> None:
        require("tensorboard")
        self._writer: Any = None

    @hookimpl
    def start(self, config: RunConfig, run_dir: Path, iteration: int) -> None:
        """Open an event file, and write the settings if the run is new."""
        from torch.utils.tensorboard import SummaryWriter

        again = first_evaluation(config, iteration)
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=again if iteration else None)
        if not iteration:
            indented = "".join(f"    {line}\n" for line in config.to_toml().splitlines())
            self._writer.add_text("config", indented, 0)
        self._writer.flush()

    @hookimpl
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a scalar for each metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # otherwise a kill loses up to two minutes of metrics

    @hookimpl
    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a Markdown table for each split."""
        for name, table in sample_tables(rows).items():
            lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS)), *(_line(map(escape, row)) for row in table)]
            self._writer.add_text(name, "\n".join(lines), step)
        self._writer.flush()

    @hookimpl
    def finish(self) -> None:
        """Close the file."""
        self._writer.close()


def escape(value: object) -> str:
    """Escape a value, so that it renders as plain text in Markdown and HTML; line ends become ``<br>``."""
    text = "" if value is None else str(value).encode(errors="replace").decode()
    inert = _MARKUP.sub(lambda character: f"&#{ord(character[0])};", text)
    return "<br>".join(inert.splitlines())


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
