"""Logger ``csv``: one table, also with late metrics and resumed runs."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from esplug.config import make_config
from esplug.errors import UserError
from esplug.loggers.logger_set import LoggerSet

CONFIG = make_config({"eval_freq": 2, "n_iterations": 6, "logging": "csv"})


def write(run_dir: Path, first: int, rows: list[tuple[int, Mapping[str, float]]]) -> list[dict[str, str]]:
    """Log from an iteration on, as a run does, and return the table."""
    loggers = LoggerSet(CONFIG.logging)
    loggers.start(CONFIG, run_dir, first)
    for step, metrics in rows:
        loggers.log(step, metrics)
    loggers.finish("finished")
    return table(run_dir)


def table(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_new_metrics_add_columns_and_keep_existing_values(tmp_path: Path) -> None:
    rows = write(
        tmp_path,
        0,
        [(0, {"eval/a": 0.1 + 0.2}), (0, {"train/b": 2}), (1, {"train/b": 3.0, 'train/"c",\nd': 1e-9}), (2, {})],
    )
    assert rows == [
        {"step": "0", "eval/a": "0.30000000000000004", "train/b": "", 'train/"c",\nd': ""},
        {"step": "0", "eval/a": "", "train/b": "2", 'train/"c",\nd': ""},
        {"step": "1", "eval/a": "", "train/b": "3.0", 'train/"c",\nd': "1e-09"},
        {"step": "2", "eval/a": "", "train/b": "", 'train/"c",\nd': ""},
    ]


def test_undefined_values_are_empty_cells(tmp_path: Path) -> None:
    rows = write(tmp_path, 0, [(0, {"train/a": math.nan, "train/b": math.inf, "train/c": 1.0})])
    assert rows == [{"step": "0", "train/a": "", "train/b": "", "train/c": "1.0"}]


@pytest.mark.parametrize("torn", [0, 5])
def test_a_resumed_run_replaces_rows_at_and_after_its_iteration(tmp_path: Path, torn: int) -> None:
    steps = [(0, {"eval/a": 0.5}), *((step, {"train/b": float(step)}) for step in range(3)), (2, {"eval/a": 0.75})]
    write(tmp_path, 0, steps)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[: -torn or None])  # a kill within a row
    rows = write(tmp_path, 2, [(2, {"eval/a": 0.875}), (2, {"train/b": 20.0, "train/new": 1.0})])
    assert [(row["step"], row["eval/a"], row["train/b"], row["train/new"]) for row in rows] == [
        ("0", "0.5", "", ""),
        ("0", "", "0.0", ""),
        ("1", "", "1.0", ""),
        ("2", "0.875", "", ""),
        ("2", "", "20.0", "1.0"),
    ]


def test_a_logger_added_on_resume_has_the_earlier_rows(tmp_path: Path) -> None:
    loggers = LoggerSet(["jsonl"])
    loggers.start(CONFIG, tmp_path)
    loggers.log(0, {"train/b": 1.0})
    loggers.finish("interrupted")
    assert [row["train/b"] for row in write(tmp_path, 1, [(1, {"train/b": 2.0})])] == ["1.0", "2.0"]


def test_a_table_that_cannot_be_written_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(UserError, match=r"logger 'csv' cannot start \[IsADirectoryError"):
        LoggerSet(CONFIG.logging).start(CONFIG, tmp_path)
