"""Hostile programs given to the task ``code``: they earn nothing and harm nothing, in the processes that grade.

A part runs by default, and with ``ESPLUG_SOAK`` every program on every kind of test.
"""

import os
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

import esplug_tasks_code as task
from esplug.rewards import RewardPool
from esplug_tasks_code import suites
from tests.helpers.amount import SOAK
from tests.helpers.hostile_programs import AMONG_FILES, PROGRAMS
from tests.helpers.sandboxes import available
from tests.helpers.timing import within

OPTIONS = dict(task.options()) | {"seconds": 0.5, "memory": 256, "reward": "all"}
ROWS = {
    "function": {"tests": {"fn_name": "solve", "inputs": [[1], [5], [7]], "outputs": [2, 10, 14]}},
    "program": {"tests": {"inputs": ["1\n", "5\n", "7\n"], "outputs": ["2\n", "10\n", "14\n"]}},
    "assertions": {"tests": ["assert solve(1) == 2", "assert solve(5) == 10", "assert 14 == solve(7)"]},
}
GOOD = """
import sys
def solve(x):
    return x * 2
print(solve(int(sys.stdin.read() or 0)))
"""
CANARY = "canary"


def processes() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def spread(sandbox: str) -> list[tuple[str, str]]:
    """Return pairs of a kind of test and a program: all of them, or a part."""
    kinds, programs = list(ROWS), PROGRAMS | (AMONG_FILES if sandbox == "bubblewrap" else {})
    if SOAK:
        return [(kind, name) for name in programs for kind in kinds]
    pairs = [(kinds[number % len(kinds)], name) for number, name in enumerate(programs)]
    return pairs if sandbox == "bubblewrap" else pairs[::5]


@pytest.mark.more
@pytest.mark.parametrize(
    "sandbox",
    [
        pytest.param(sandbox, marks=pytest.mark.fault("hostile program among good ones", len(spread(sandbox))))
        for sandbox in ("bubblewrap", "rlimits")
    ],
)
def test_hostile_programs_earn_nothing_and_harm_nothing(sandbox, tmp_path, monkeypatch) -> None:
    available(sandbox)
    programs = PROGRAMS | AMONG_FILES
    canary = tmp_path / CANARY
    canary.write_text("unharmed")
    before = canary.stat()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    memory_files = set(os.listdir("/dev/shm"))
    targets = {kind: suites.read(row, "tests", 0) for kind, row in ROWS.items()}
    tried = spread(sandbox)
    pairs = [(f"```\n{GOOD}```", kind) for kind in ROWS]
    for kind, name in tried:
        pairs.append((f"```\nCANARY = {str(canary)!r}\n{programs[name]}\n```", kind))
    pairs += pairs[:3]
    reward = partial(task.reward, options=OPTIONS | {"sandbox": sandbox})
    with RewardPool(reward, timeout=60, processes=2) as pool:
        graders = processes()
        grades = pool.submit([answer for answer, _ in pairs], [targets[kind] for _, kind in pairs]).result()
        assert graders <= processes(), "a program killed a grader"
        deadline = time.monotonic() + 30  # the kernel may take a moment to end a killed namespace
        while len(left := processes()) > 4 and time.monotonic() < deadline:  # two graders and their supervisors
            time.sleep(0.1)
        assert len(left) <= 4, f"a program outlived its run: {[psutil.Process(each).cmdline() for each in left]}"
    names = [*ROWS, *(f"{name}, {kind}" for kind, name in tried), *ROWS]
    found = {name: (grade.reward.value, grade.failed) for name, grade in zip(names, grades, strict=True)}
    assert {name: each for name, each in found.items() if each != (float(name in ROWS), False)} == {}
    assert canary.read_text() == "unharmed"
    after = canary.stat()
    assert (after.st_mode, after.st_nlink, after.st_mtime_ns) == (before.st_mode, before.st_nlink, before.st_mtime_ns)
    assert sorted(os.listdir(tmp_path)) == [CANARY, "temporary"]
    assert os.listdir(tmp_path / "temporary") == []
    assert set(os.listdir("/dev/shm")) <= memory_files


def test_slow_programs_do_not_hold_up_the_others() -> None:
    available("rlimits")
    target = suites.read(ROWS["program"], "tests", 0)
    with within(20):
        slow = task.reward("```\nimport time\ntime.sleep(1000)\n```", target, OPTIONS | {"sandbox": "rlimits"})
    assert (slow.label, slow.value) == ("timeout", 0.0)


def test_the_tests_need_no_folder_of_this_machine() -> None:
    assert not any(str(Path.home()) in program for program in (*PROGRAMS.values(), *AMONG_FILES.values()))
