r"""Grading benchmark: a suite's answers through the real reward pool, and hostile answers.

    python -m benchmarks.grading --data SUITE

SUITE is a saved DatasetDict (or a split of one) with a column ``answer``. Every answer, in a box, is graded against
itself and against the answer of the next problem. Pools of one and of two processes give problems per second. Grading
once more in this process shows which answers needed the symbolic step, and the slowest answers.
``benchmarks.grading.agreement`` compares with math-verify, and ``benchmarks.grading.fuzz`` searches for slow answers.
"""

import argparse
import os
import platform
import re
import time
from importlib.metadata import requires, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.grading.suites import accepted, golds_of
from benchmarks.shared.machine import processor
from esplug.rewards import RewardPool
from esplug_tasks_math import defaults, options, reward, symbolic

TIMEOUT = float(defaults(options())["reward_function_timeout"])
STARTING = 4.0  # seconds until both processes have loaded the task
HOSTILE = {
    r"9^{9^{9^{9}}}": r"9^{9^{9^{9}}}",
    r"(x+1)^{10000}": r"(x+1)^{10000}",
    r"(x+1)^{10000}-(x-1)^{9999}": r"(x+1)^{10000}-(x-1)^{9999}",
    "a megabyte of {": "{" * 1_000_000,
    "a megabyte of {}": "{}" * 500_000,
    "100,000 digits": "9" * 100_000,
    "9,000 digits": "9" * 9_000,
    "390 digits to the 390 digits": "9" * 390 + "^{" + "9" * 390 + "}",
    "28 nested roots": r"\sqrt{2+" * 28 + "2" + "}" * 28,
    "29 nested fractions": r"\frac{1}{1+" * 29 + "x" + "}" * 29,
    "28 nested tangents": r"\tan(" * 28 + "x" + ")" * 28,
    "900 nested parentheses": "(" * 900 + "1" + ")" * 900,
    "1000000!": "1000000!",
    "((9!)!)!": "((9!)!)!",
    r"\binom{10^9}{5 \cdot 10^8}": r"\binom{10^{9}}{5\cdot10^{8}}",
    r"\binom{1000000000}{500000000}": r"\binom{1000000000}{500000000}",
    r"\sum k! to 10^9": r"\sum_{k=1}^{10^{9}} k!",
    r"\int x^x": r"\int_0^1 x^x dx",
    "x to the x, seven times": "x^{x^{x^{x^{x^{x^{x}}}}}}",
    r"\sin(10^{10000})": r"\sin(10^{10000})",
    "250 x 3 matrix": r"\begin{pmatrix}" + r"1&2&3\\" * 250 + r"\end{pmatrix}",
    "polynomial of 100 terms": "+".join(f"x^{{{power}}}" for power in range(100)),
    "60 expressions in a list": ",".join(f"\\sqrt{{x+{number}}}" for number in range(60)),
    "1,900 signs": "-" * 1_900 + "1",
}
GOLD = r"\sqrt{x+1}"


def boxed(answer: str) -> str:
    """Return a short solution that ends with the first accepted answer."""
    return f"We find $\\boxed{{{accepted(answer)[0]}}}$."


def seconds(pool: RewardPool, outputs: list[str], golds: list[str]) -> float:
    """Return how long the pool takes to grade."""
    start = time.perf_counter()
    pool.submit(outputs, golds).result()
    return time.perf_counter() - start


def throughput(pairs: dict[str, tuple[list[str], list[str]]]) -> Table:
    table = Table(title="Problems per second through the reward pool")
    table.add_column("answers")
    for column in ("problems", "1 process", "2 processes", "again, 1", "again, 2"):
        table.add_column(column, justify="right")
    rows: dict[str, list[float]] = {name: [] for name in pairs}
    for round_of in ("first", "again"):
        for processes in (1, 2):
            with RewardPool(reward, timeout=TIMEOUT, processes=processes) as pool:
                time.sleep(STARTING)
                for name, (outputs, golds) in pairs.items():
                    if round_of == "again":  # as in a run, which repeats its problems
                        seconds(pool, outputs, golds)
                    rows[name].append(len(golds) / seconds(pool, outputs, golds))
    for name, (_, golds) in pairs.items():
        table.add_row(name, f"{len(golds):,}", *(f"{figure:,.0f}" for figure in rows[name]))
    return table


def steps(pairs: dict[str, tuple[list[str], list[str]]]) -> tuple[Table, Table]:
    """Grade in this process: count the answers that need the symbolic step, and time each answer."""
    calls = 0
    originals = symbolic.same_value, symbolic.same_zeros

    def counted(function):
        def count(*arguments):
            nonlocal calls
            calls += 1
            return function(*arguments)

        return count

    symbolic.same_value, symbolic.same_zeros = map(counted, originals)
    shares = Table(title="Deciding step")
    for column in ("answers", "cheap checks", "symbolic", "correct", "wrong", "unparsable"):
        shares.add_column(column, justify="left" if column == "answers" else "right")
    timed: list[tuple[float, str, str, str]] = []
    for name, (outputs, golds) in pairs.items():
        symbolically, labels = 0, []
        for output, gold in zip(outputs, golds, strict=True):
            calls, start = 0, time.perf_counter()
            labels.append(reward(output, gold).label)
            timed.append((time.perf_counter() - start, output, gold, labels[-1]))
            symbolically += calls > 0
        share = symbolically / len(golds)
        counts = [f"{labels.count(label):,}" for label in ("correct", "wrong", "unparsable")]
        shares.add_row(name, f"{1 - share:.1%}", f"{share:.1%}", *counts)
    symbolic.same_value, symbolic.same_zeros = originals
    slowest = Table(title="The slowest ten")
    for column in ("ms", "output", "expected", "label"):
        slowest.add_column(column, overflow="fold", justify="right" if column == "ms" else "left")
    for duration, output, gold, label in sorted(timed, reverse=True)[:10]:
        slowest.add_row(f"{duration * 1e3:.0f}", ascii(output)[:80], ascii(gold)[:60], label)
    return shares, slowest


def hostile(outputs: list[str], golds: list[str]) -> tuple[Table, str]:
    """Grade each hostile answer through a pool of one process, and ordinary ones before, among and after."""
    table = Table(title=f"Hostile answers, against {GOLD}, time-out {TIMEOUT:g} s")
    for column in ("answer", "seconds", "label"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    with RewardPool(reward, timeout=TIMEOUT, processes=1) as pool:
        before = len(golds) / seconds(pool, outputs, golds)
        for name, text in HOSTILE.items():
            start = time.perf_counter()
            (graded,) = pool.submit([rf"\boxed{{{text}}}"], [GOLD]).result()
            table.add_row(name, f"{time.perf_counter() - start:.3f}", graded.reward.label)
        mixed = [rf"\boxed{{{text}}}" for text in HOSTILE.values()]
        among = len(golds) / seconds(pool, outputs + mixed, golds + [GOLD] * len(mixed))
        after = len(golds) / seconds(pool, outputs, golds)
    rates = f"ordinary answers per second: {before:,.0f} before, {among:,.0f} with these among them, {after:,.0f} after"
    return table, rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a saved DatasetDict with a column 'answer'")
    golds = golds_of(parser.parse_args().data)
    right = [boxed(gold) for gold in golds]
    pairs = {"right": (right, golds), "of the next problem": (right[1:] + right[:1], golds)}

    console = Console(width=None if Console().is_terminal else 120)
    required = (
        re.match("[A-Za-z0-9_.-]+", line) for line in requires("esplug-tasks-math") or () if "extra" not in line
    )
    packages = sorted(match[0] for match in required if match and match[0] != "esplug")
    console.print(f"{processor()}, {os.cpu_count()} cores, {platform.system()}; load average {os.getloadavg()[0]:.1f}")
    console.print(f"python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in packages))
    console.print(throughput(pairs))
    for table in steps(pairs):
        console.print(table)
    table, rates = hostile(*pairs["right"])
    console.print(table)
    console.print(rates)


if __name__ == "__main__":
    main()
