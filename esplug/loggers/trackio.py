"""Logger ``trackio``: trackio's storage on this machine, for ``trackio show``.

It needs no network, unless you set trackio's ``TRACKIO_SPACE_ID`` or ``TRACKIO_SERVER_URL``. A resumed run continues
the same trackio run and skips the steps that it already has: a repeated iteration has the same rewards, and trackio
cannot replace a step.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esplug.config import RunConfig
from esplug.hookspecs import hookimpl
from esplug.loggers.services import COLUMNS, require, sample_tables, stored_identity


class TrackioLogger:
    """One run of trackio."""

    def __init__(self) -> None:
        require("trackio")
        self._run: Any = None
        self._last = -1  # last step of the run when it was opened

    @hookimpl
    def start(self, config: RunConfig, run_dir: Path) -> None:
        """Open a run named after its directory, with all settings."""
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        # trackio identifies a run by its name.
        name = stored_identity(run_dir / "trackio-run-name", f"{run_dir.name}-{secrets.token_hex(2)}")
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
            tables = {name: trackio.Table(list(COLUMNS), table) for name, table in sample_tables(rows).items()}
            self._run.log(tables, step=step)

    @hookimpl
    def finish(self) -> None:
        """Write the remaining metrics."""
        self._run.finish()
