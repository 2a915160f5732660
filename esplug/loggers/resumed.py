"""What a resumed run is going to log again, and what is kept of before."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esplug.loggers.metrics_file import FILE_NAME

if TYPE_CHECKING:
    from esplug.config import RunConfig


def remembered(path: Path, fresh: str) -> str:
    """Return what the file holds, such as the name that a service knows the run by; a new run's gets ``fresh``."""
    if not path.exists():
        path.write_text(f"{fresh}\n")
    return path.read_text().strip()


def first_evaluation(config: "RunConfig", iteration: int) -> int:
    """Return the earliest step for which a run that goes on at ``iteration`` may evaluate again.

    A run that had finished there has evaluated where one that goes on need not.
    """
    return iteration + (not config.evaluates_at(iteration))


def is_logged_again(step: int, names: Iterable[str], config: "RunConfig", iteration: int) -> bool:
    """Whether a run that goes on at ``iteration`` logs metrics of these names for this step."""
    names = list(names)
    trained = any(name.startswith("train/") for name in names)
    evaluated = any(name.startswith("eval/") for name in names)
    return (trained and step >= iteration) or (evaluated and step >= first_evaluation(config, iteration))


def read_row(line: bytes) -> dict[str, Any] | None:
    """Read a line of ``metrics.jsonl``; ``None`` where it is no row, such as the half of one that a kill leaves."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def rows_before(run_dir: Path, config: "RunConfig", iteration: int) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.jsonl`` that a run that goes on at ``iteration`` does not log again."""
    path = run_dir / FILE_NAME
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = [row for line in lines if (row := read_row(line))]
    return [row for row in rows if not is_logged_again(row["step"], row, config, iteration)]
