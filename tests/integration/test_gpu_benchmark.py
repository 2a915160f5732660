"""`benchmarks/gpu` from its door, as far as it goes without a GPU."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.soak]


def test_it_checks_everything_and_prints_its_tables(tmp_path) -> None:
    arguments = (
        f"--cases 10 --tensors 2 --members 2 --only checks memory kernels adapters rollout step --results {tmp_path}"
    )
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    before_tables = done.stdout.partition("memory, ")[0].splitlines()
    assert sum(map(bool, before_tables)) == 5, "the machine, and each of four groups of checks"
    for part, n_rows in {"memory": 1, "kernels": 1, "adapters": 2, "rollout": 3, "step": 30}.items():
        rows = json.loads((tmp_path / f"gpu-{part}.json").read_text())["rows"]
        assert len(rows) == n_rows or part == "step"
        assert "tiny" in next(iter(rows[0].values()))
        assert f"{part}, " in done.stdout
