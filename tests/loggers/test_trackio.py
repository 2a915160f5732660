"""Logger ``trackio``, read back from trackio's own storage."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trackio", reason="trackio is not installed; its pillow<13 clashes with vLLM 0.33's pillow>=13")

CODE = """
    import socket, sys
    from pathlib import Path

    def no_network(*_): raise OSError("a network was asked for")
    socket.socket.connect = socket.getaddrinfo = no_network

    from esplug.config import make_config
    from esplug.loggers.logger_set import LoggerSet

    config = make_config({"wandb_project": "tests", "logging": "trackio", "n_iterations": 4, "eval_freq": 2})
    run_dir, first, last, value = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    run_dir.mkdir(exist_ok=True)
    loggers = LoggerSet(config.logging)
    loggers.start(config, run_dir, first)
    row = {"split": "easy", "index": 0, "sample": 0, "prompt": ["p"], "target": 4, "output": "<b>", "reward": 0.5,
           "label": "format"}
    for step in range(first, last):
        if config.evaluates_at(step):
            loggers.samples(step, [row] * 150)
            loggers.samples(step, [row | {"split": "hard"}])
            loggers.log(step, {"eval/average/reward/mean": value})
        loggers.log(step, {"train/reward/mean": value + step})
    loggers.finish("finished")
"""
READ = """
    import json
    from trackio.sqlite_storage import SQLiteStorage

    print(json.dumps({
        run["name"]: [
            SQLiteStorage.get_run_config("tests", run["name"])["sigma"], SQLiteStorage.get_logs("tests", run["name"])
        ]
        for run in SQLiteStorage.get_run_records("tests")
    }, default=str))
"""


def python(tmp_path: Path, code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "TRACKIO_DIR": str(tmp_path / "stored")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_runs_are_stored_and_resumed_without_a_network(tmp_path: Path) -> None:
    python(tmp_path, CODE, "one", 0, 3, 0.0)
    python(tmp_path, CODE, "one", 2, 4, 0.0)
    python(tmp_path, CODE, tmp_path / "one" / "one", 0, 1, 7.0)  # another run of the same name
    runs: dict[str, Any] = json.loads(python(tmp_path, READ))
    name = (tmp_path / "one" / "trackio-run-name").read_text().strip()
    assert name.startswith("one-")
    assert len(runs) == 2
    sigma, logged = runs.pop(name)
    assert sigma == 0.001
    rewards = {row["step"]: row["train/reward/mean"] for row in logged if "train/reward/mean" in row}
    assert rewards == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0}
    tables = {(row["step"], key): row[key] for row in logged for key in row if key.startswith("samples/")}
    assert set(tables) == {(step, f"samples/{split}") for step in (0, 2) for split in ("easy", "hard")}
    table = tables[2, "samples/easy"]["_value"]
    assert len(table) == 100
    assert table[0] == {"prompt": '["p"]', "target": "4", "answer": "<b>", "reward": 0.5, "label": "format"}
    ((_, other),) = runs.values()
    assert [row["train/reward/mean"] for row in other if "train/reward/mean" in row] == [7.0]
