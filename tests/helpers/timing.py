"""Limits of time in tests.

pytest runs a test that raises `TooSlowError` again, up to three times: what else runs on the machine may delay it once,
but code that is slow is slow each time.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class TooSlowError(AssertionError):
    """Raised when something took too long."""


def limit(seconds: float, most: float) -> None:
    """Raise `TooSlowError` if a measured time has reached the most that is allowed."""
    if seconds >= most:
        raise TooSlowError(f"took {seconds:.2f} s; less than {most:.2f} s are allowed")


@contextmanager
def within(most: float) -> Iterator[None]:
    """Raise `TooSlowError` if the block takes `most` seconds or longer."""
    began = time.perf_counter()
    yield
    limit(time.perf_counter() - began, most)


def start_seconds(code: str, runs: int = 5) -> float:
    """Return the seconds that a Python process with this code takes, the fastest of some runs."""
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", code], check=True)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def slowness() -> float:
    """Return how much slower than usual this machine is, measured by Python's start (usually 30 ms); at least 1."""
    return max(1.0, start_seconds("import json, re") / 0.03)


def start_quickly(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command, which must take less than four times as long as the import of the command line's libraries.

    It is compared with an import right after it, because other tests load the machine unevenly. `options` are those of
    `subprocess.run`.
    """
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, **options)
    seconds = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    limit(seconds, 4 * start_seconds("import pydantic, rich.markdown, typer.rich_utils", runs=1))
    return done
