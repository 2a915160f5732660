"""The command line under test: running it in this process, its errors, and the machine's speed."""

import subprocess
import sys
import time

import pytest

from esplug.cli import app as cli

HEAVY = (
    *("torch", "vllm", "ray", "numba", "transformers", "datasets"),
    *("plotly", "jinja2", "tensorboard", "trackio", "wandb"),
)


def run_cli(monkeypatch, capfd, *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process and return exit status, output and errors."""
    monkeypatch.setattr(sys, "argv", ["esplug", *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = capfd.readouterr()
    return done.value.code, out, err


def errors_of(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("error: ")]


def slowness() -> float:
    """How much slower than usual this machine is now, by a bare Python's start (usually under 30 ms); at least 1."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", "import json, re"], check=True)
        seconds.append(time.perf_counter() - started)
    return max(1.0, min(seconds) / 0.03)
