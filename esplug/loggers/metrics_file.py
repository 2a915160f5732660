"""Reader of ``metrics.jsonl``. Tolerates damaged lines and a run that is still writing."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_NAME = "metrics.jsonl"
_SECONDS = re.compile(rb'"time/(?:iteration|evaluate)": ([0-9.eE+-]+)')


@dataclass(frozen=True, slots=True)
class Row:
    """Metrics of one iteration or evaluation, from one line of the file.

    Attributes:
        step: number of updates made before it.
        values: metrics by name, without those that are undefined (null in the file).
    """

    step: int
    values: Mapping[str, float]

    def get(self, name: str) -> float | None:
        """Return a metric, or ``None`` if it is undefined or missing."""
        return self.values.get(name)


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, or ``b""`` if it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def read_row(line: bytes) -> dict[str, Any] | None:
    """Parse a line; return ``None`` if it is not a row, for example because a kill cut it off."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def rows_of(data: bytes, containing: bytes = b"") -> tuple[list[Row], int]:
    """Read the lines of a metrics file.

    Args:
        data: content of the file. An incomplete last line is ignored, because a run may still be writing it.
        containing: skip lines without this text before parsing them.

    Returns:
        The rows, and the number of lines that could not be read.
    """
    lines = data.split(b"\n")[:-1]
    wanted = [line for line in lines if line.strip() and containing in line]
    rows = [row for line in wanted if (row := _row(line))]
    return rows, len(wanted) - len(rows)


def by_step(rows: Iterable[Row], prefix: str) -> tuple[Row, ...]:
    """Return the rows with a metric of this prefix, sorted by step. The last row of a step wins."""
    found = {row.step: row for row in rows if any(name.startswith(prefix) for name in row.values)}
    return tuple(found[step] for step in sorted(found))


def numbers(metrics: Mapping[Any, Any]) -> dict[str, float]:
    """Return the metrics that are finite numbers."""
    return {str(name): number for name, value in metrics.items() if (number := _finite(value)) is not None}


def seconds_of(data: bytes) -> float:
    """Return the total seconds of iterations and evaluations, without parsing the lines."""
    total = 0.0
    for text in _SECONDS.findall(data):
        try:
            later = total + float(text)
        except ValueError:  # a damaged line
            continue
        total = later if math.isfinite(later) else total
    return total


def _finite(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # integers in JSON are unbounded
        return None
    return number if math.isfinite(number) else None


def _row(line: bytes) -> Row | None:
    content = read_row(line)
    if content is None or _finite(content["step"]) is None or content["step"] < 0:
        return None
    values = {name: value for name, value in content.items() if name not in ("step", "time")}
    return Row(content["step"], numbers(values))
