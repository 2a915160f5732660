"""Reader of ``metrics.jsonl``, which may have damaged lines, be in writing, or belong to a run that is resumed."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esplug.config import RunConfig

FILE_NAME = "metrics.jsonl"
_SECONDS = re.compile(rb'"time/(?:iteration|evaluate)": ([0-9.eE+-]+)')


@dataclass(frozen=True, slots=True)
class Row:
    """Metrics of one iteration or evaluation, from one line of the file."""

    step: int  #: number of updates made before it
    values: Mapping[str, float]  #: by name, without those that are undefined (null in the file)

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
    """Read the lines with a certain text. Return the rows, and the number of lines that could not be read.

    An incomplete last line is ignored, because a run may still be writing it.
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


def first_evaluation(config: RunConfig, iteration: int) -> int:
    """Return the earliest step at which a run resumed at ``iteration`` may evaluate again.

    A run that finished at ``iteration`` has evaluated there, even if a longer run does not evaluate at that step.
    """
    return iteration + (not config.evaluates_at(iteration))


def is_logged_again(step: int, names: Iterable[str], config: RunConfig, iteration: int) -> bool:
    """Return whether a run resumed at ``iteration`` logs metrics of these names for this step again."""
    names = list(names)
    trained = any(name.startswith("train/") for name in names)
    evaluated = any(name.startswith("eval/") for name in names)
    return (trained and step >= iteration) or (evaluated and step >= first_evaluation(config, iteration))


def rows_before(run_dir: Path, config: RunConfig, iteration: int) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.jsonl`` that a run resumed at ``iteration`` does not log again."""
    path = run_dir / FILE_NAME
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = [row for line in lines if (row := read_row(line))]
    return [row for row in rows if not is_logged_again(row["step"], row, config, iteration)]


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
