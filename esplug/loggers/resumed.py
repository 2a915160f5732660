"""Helpers of resumed runs: which metrics are logged again, and which rows are kept."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esplug.loggers.metrics_file import FILE_NAME, read_row

if TYPE_CHECKING:
    from esplug.config import RunConfig


def first_evaluation(config: "RunConfig", iteration: int) -> int:
    """Return the earliest step at which a run resumed at ``iteration`` may evaluate again.

    A run that finished at ``iteration`` has evaluated there, even if a longer run does not evaluate at that step.
    """
    return iteration + (not config.evaluates_at(iteration))


def is_logged_again(step: int, names: Iterable[str], config: "RunConfig", iteration: int) -> bool:
    """Return whether a run resumed at ``iteration`` logs metrics of these names for this step again."""
    names = list(names)
    trained = any(name.startswith("train/") for name in names)
    evaluated = any(name.startswith("eval/") for name in names)
    return (trained and step >= iteration) or (evaluated and step >= first_evaluation(config, iteration))


def rows_before(run_dir: Path, config: "RunConfig", iteration: int) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.jsonl`` that a run resumed at ``iteration`` does not log again."""
    path = run_dir / FILE_NAME
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = [row for line in lines if (row := read_row(line))]
    return [row for row in rows if not is_logged_again(row["step"], row, config, iteration)]
