"""Logger ``csv``: a table for spreadsheets, ``metrics.csv`` in the run directory.

The table has one row per iteration and per evaluation, and ``step`` is its first column. A new metric adds a column at
the right and rewrites the file. A cell is empty if its row lacks the metric or the value is not finite. A resumed run
starts from the earlier rows in ``metrics.jsonl``.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from esplug.config import RunConfig
from esplug.hookspecs import hookimpl
from esplug.loggers.metrics_file import rows_before
from esplug.utils import atomic_write


class CsvLogger:
    """One run's ``metrics.csv``."""

    def __init__(self) -> None:
        self._path = Path("metrics.csv")
        self._columns: list[str] = []

    @hookimpl
    def start(self, config: RunConfig, run_dir: Path, iteration: int) -> None:
        """Write the rows of the earlier process, if any. Fails now if the file cannot be written."""
        self._path = run_dir / "metrics.csv"
        rows = [{name: row[name] for name in row if name != "time"} for row in rows_before(run_dir, config, iteration)]
        self._write(list(dict.fromkeys(["step", *(name for row in rows for name in row)])), rows)

    @hookimpl
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a row."""
        row: dict[str, Any] = {"step": step, **metrics}
        if new := [name for name in row if name not in self._columns]:
            with self._path.open(encoding="utf-8", newline="") as file:
                rows = [*csv.DictReader(file), row]
            self._write([*self._columns, *new], rows)
        else:
            atomic_write.append(self._path, _text([_cells(self._columns, row)]))

    def _write(self, columns: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
        atomic_write.write(self._path, _text([columns, *(_cells(columns, row) for row in rows)]))
        self._columns = columns


def _cells(columns: Iterable[str], row: Mapping[str, Any]) -> list[str]:
    return [_cell(row.get(name)) for name in columns]


def _cell(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else str(value)


def _text(rows: Iterable[Sequence[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()
