"""Logger ``jsonl``: strict JSON, and each row once in resumed runs."""

import json
import math
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esplug.config import make_config
from esplug.errors import UserError
from esplug.loggers.jsonl import JsonlLogger
from esplug.loggers.logger_set import LoggerSet
from tests.loggers.test_logger_set import CONFIG


def test_jsonl_is_strict_json_and_appends(tmp_path: Path) -> None:
    for step in (3, 4):
        loggers = LoggerSet(["jsonl"])
        loggers.start(CONFIG, tmp_path)
        metrics: dict[str, Any] = {
            "a": math.nan,
            "b": math.inf,
            "c": 0.5,
            "d": 7,
            "e": np.float32(0.25),
            "f": np.int64(2),
        }
        loggers.log(step, metrics)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1], parse_constant=pytest.fail)
        assert list(last) == ["step", "time", *metrics]
        assert last["time"] > 1.7e9
        assert [last[name] for name in ("step", *metrics)] == [step, None, None, 0.5, 7, 0.25, 2]
        loggers.finish("interrupted")
    assert len(lines) == 2


def test_jsonl_that_cannot_be_written_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="logger 'jsonl' cannot start"):
        LoggerSet(["jsonl"]).start(CONFIG, tmp_path / "missing")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@settings(deadline=None)  # it waits for the disk
@given(
    k=st.integers(0, 12),
    eval_freq=st.integers(0, 5),
    reached=st.integers(0, 12),
    torn=st.integers(0, 30),
    evaluated=st.booleans(),
)
def test_a_resumed_run_has_each_row_once_and_loses_none(
    tmp_path_factory: pytest.TempPathFactory, k: int, eval_freq: int, reached: int, torn: int, evaluated: bool
) -> None:
    """A run resumed at iteration k writes what an uninterrupted run writes, wherever it was killed."""
    run_dir = tmp_path_factory.mktemp("run")
    config = make_config({"eval_freq": eval_freq, "n_iterations": 12})

    def write(first: int, last: int, process: int) -> None:
        logger = JsonlLogger()
        logger.start(config, run_dir, first)
        for step in range(first, last + 1):
            due = step in (0, 12) or (eval_freq and step % eval_freq == 0)
            if due and (step < last or evaluated):
                logger.log(step, {"eval/average/reward/mean": 0.5, "process": process})
            if step < last:
                logger.log(step, {"train/reward/mean": 0.5, "time/x": 1.0, "process": process})

    path, aside = run_dir / "metrics.jsonl", run_dir / "metrics.replaced.jsonl"
    write(0, max(reached, k), 1)
    if torn and path.read_bytes():  # a kill within the last row
        path.write_bytes(path.read_bytes()[:-torn])
    before = path.read_bytes().splitlines()
    evaluated = True
    write(k, 12, 2)
    due = {step for step in range(13) if step in (0, 12) or (eval_freq and step % eval_freq == 0)}
    written = [(row["step"], any("eval/" in name for name in row)) for row in rows(path)]
    assert len(set(written)) == len(written)
    assert set(written) >= {(step, False) for step in range(k, 12)} | {(step, True) for step in due if step >= k}
    assert set(written) <= {(step, False) for step in range(12)} | {(step, True) for step in due}
    assert all(row["process"] == 2 for row in rows(path) if row["step"] > k)
    kept = path.read_bytes().splitlines() + (aside.read_bytes().splitlines() if aside.exists() else [])
    assert set(before) <= set(kept)


def test_jsonl_keeps_rows_that_are_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 4, "train/a": 1}', '{"step": 5, "eval/a": 1}', '{"step": 9, "mine": 1}', '{"step": 5, "train/a']
    path.write_text("\n".join(lines))
    JsonlLogger().start(CONFIG, tmp_path, 5)
    assert path.read_text() == f"{lines[0]}\n{lines[2]}\n"
    assert (tmp_path / "metrics.replaced.jsonl").read_text() == f"{lines[1]}\n{lines[3]}\n"
    before = path.stat()
    JsonlLogger().start(CONFIG, tmp_path, 5)
    assert path.stat() == before  # nothing to move: not even rewritten
    path.write_text('{"step": 4, "train/a": 1}')  # whole, but for its newline
    logger = JsonlLogger()
    logger.start(CONFIG, tmp_path, 5)
    logger.log(5, {"train/a": 2.0})
    assert [row["step"] for row in rows(path)] == [4, 5]


def test_two_jsonl_loggers_of_one_process_share_nothing(tmp_path: Path) -> None:
    one, two = JsonlLogger(), JsonlLogger()
    for logger, name in ((one, "one"), (two, "two")):
        (tmp_path / name).mkdir()
        logger.start(CONFIG, tmp_path / name, 0)
    one.log(1, {})
    two.log(2, {})
    assert [rows(tmp_path / name / "metrics.jsonl")[0]["step"] for name in ("one", "two")] == [1, 2]


@pytest.mark.parametrize("large", [{"a": 10**90}, {"a" * 90: 1.0}], ids=["value", "name"])
@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_a_row_that_does_not_fit_on_the_disk_damages_no_other_row(
    tmp_path: Path, name: str, large: Mapping[str, float]
) -> None:
    code = f"""
        import resource
        from pathlib import Path
        from esplug.loggers.{name} import {name.title()}Logger
        logger = {name.title()}Logger()
        logger.start(None, Path(), 0)
        logger.log(0, {{"a": 1.0}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, -1))
        try:
            logger.log(1, {large})
        except OSError:
            print("full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        logger.log(2, {{"a": 1.0}})
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "full\n"
    path = tmp_path / f"metrics.{name}"
    if name == "csv":
        assert path.read_text() == "step,a\n0,1.0\n2,1.0\n"
    else:
        assert [row["step"] for row in rows(path)] == [0, 2]
