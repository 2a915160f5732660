"""Command line under test: runs it in this process, and reads its errors."""

import sys

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
