"""`benchmarks/gpu.py` from its door, as far as it goes without a GPU."""

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.vllm


def test_it_checks_everything_and_prints_its_tables() -> None:
    arguments = "--cases 10 --members 2 --prompts 2 --tokens 3 --only memory kernels iterations"
    command = [sys.executable, "benchmarks/gpu.py", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    out = done.stdout
    assert re.search(r"10 random blocks, 2 with noise of low rank, .* the same as on the CPU, bit for bit", out)
    for arm in ("reference", "esplug", "esplug, rank 1"):
        row = re.search(rf"^ tiny +{arm} +2 +([\d.]+) +([\d.]+) +(\d+) +([\d.]+) +(\d+) ", out, re.MULTILINE)
        assert row, out
        assert all(float(figure) > 0 for figure in row.groups()), row[0]
    assert re.search(r"^ tiny, 0.00e9( +[\d.]+){14}", out, re.MULTILINE), out
