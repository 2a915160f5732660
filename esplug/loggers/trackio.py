"""Logger ``trackio``: trackio's own storage on this machine, for ``trackio show``.

Nothing needs a network, unless you send the run somewhere with trackio's own ``TRACKIO_SPACE_ID`` or
``TRACKIO_SERVER_URL``. A resumed run goes on with the same trackio run. What that already has for a step stays: the
iteration made again has the same rewards, and trackio cannot take a step back.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esplug.hookspecs import hookimpl
from esplug.loggers.extras import require
from esplug.loggers.resumed import remembered
from esplug.loggers.sample_table import COLUMNS, sample_tables

if TYPE_CHECKING:
    from esplug.config import RunConfig


class TrackioLogger:
    """One run of trackio."""

    def __init__(self) -> None:
        require("trackio")
        self._run: Any = None
        self._last = -1  # step that the run had when it was opened

    @hookimpl
    def start(self, config: "RunConfig", run_dir: Path) -> None:
        """Open a run named after its directory, with the whole configuration."""
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        # In trackio its name is what tells a run from others.
        name = remembered(run_dir / "trackio-run-name", f"{run_dir.name}-{secrets.token_hex(2)}")
        project = config.wandb_project
        last = SQLiteStorage.get_max_step_for_run(project, name)
        self._last = -1 if last is None else last
        self._run = trackio.init(project, name, config=config.model_dump(), resume="allow", embed=False)

    @hookimpl
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics under their own names."""
        if step >= self._last:
            self._run.log(dict(metrics), step=step)

    @hookimpl
    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record a table for each split."""
        import trackio

        if step >= self._last:
            tables = {table.name: trackio.Table(list(COLUMNS), table.rows) for table in sample_tables(rows)}
            self._run.log(tables, step=step)

    @hookimpl
    def finish(self) -> None:
        """Write what is not written yet."""
        self._run.finish()
