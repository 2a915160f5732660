"""Command line under test: runs it in this process, and reads its errors."""

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
    """Return the error lines of standard error."""
    return [line for line in err.splitlines() if line.startswith("error: ")]


def slowness() -> float:
    """Return how much slower than usual this machine is, measured by Python's start (usually 30 ms); at least 1."""
    return max(1.0, start_seconds("import json, re") / 0.03)


def start_seconds(code: str, runs: int = 5) -> float:
    """Return the seconds that a Python process with this code takes, the fastest of some runs."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", code], check=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def start_quickly(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command, which must take less than four times as long as the import of the command line's libraries.

    It is compared with an import right after it, because other tests load the machine unevenly. One of five runs must
    be quick enough. `options` are those of `subprocess.run`.
    """
    ratios: list[float] = []
    while len(ratios) < 5 and min(ratios, default=4.0) >= 4:
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, **options)
        seconds = time.perf_counter() - started
        assert done.returncode == 0, done.stderr
        ratios.append(seconds / start_seconds("import pydantic, rich.markdown, typer.rich_utils", runs=1))
    assert min(ratios) < 4, ratios
    return done
