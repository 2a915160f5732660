"""The task's own small data set."""

import json
import random
import subprocess
import sys

import pytest

from esplug import Reward
from esplug_tasks_code import prompts, small
from tests.helpers.code_rows import ROWS, block, graded

ALL = [*ROWS["train"], *(row for rows in ROWS["eval"].values() for row in rows)]


def test_every_solution_passes_its_tests_and_none_passes_those_of_another():
    """Solutions are executed here, because they are the generator's own."""
    for row in ALL:
        tests = json.loads(row["tests"])
        assert len(set(map(str, tests["inputs"]))) == small.TESTS
        assert len(set(map(str, tests["outputs"]))) > 1
        if row["kind"] == "function":
            names: dict = {}
            exec(row["solution"], names)
            assert [names["solve"](*each) for each in tests["inputs"]] == tests["outputs"]
    functions = [row for row in ALL if row["kind"] == "function"]
    assert len({row["solution"] for row in functions}) == len(functions)


@pytest.mark.parametrize("kind", small.KINDS)
def test_solutions_earn_the_full_reward_in_the_sandbox(kind):
    for row in ROWS["eval"][kind][::10]:
        assert graded(row, block(row["solution"])) == Reward(1.0, "correct", True, {"tests": 1.0})


def test_programs_of_the_small_set_print_what_the_functions_return():
    code = """
import io, sys
for source, stdin in CASES:
    sys.stdin = io.StringIO(stdin)
    exec(source, {})
    print('--')"""
    rows = [row for row in ALL if row["kind"] == "program"]
    cases = [(row["solution"], json.loads(row["tests"])) for row in rows]
    listed = [(solution, stdin) for solution, tests in cases for stdin in tests["inputs"]]
    done = subprocess.run(
        [sys.executable, "-c", f"CASES = {listed!r}\n{code}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("--\n")[:-1] == [output for _, tests in cases for output in tests["outputs"]]


def test_no_problem_is_in_both_splits_or_an_example():
    keys = {
        split: {problem.key for kind in small.KINDS for problem in small.generate(kind, split)} for split in small.ROWS
    }
    assert not keys["train"] & keys["eval"]
    problems = [row["problem"] for row in ALL]
    assert len(set(problems)) == len(problems)
    assert not {problem for pairs in prompts.EXAMPLES.values() for problem, _ in pairs} & set(problems)


def test_counts_columns_and_the_global_random_state():
    state = random.getstate()
    assert {split: small.rows(split) for split in small.ROWS} == ROWS
    assert random.getstate() == state
    assert small.build() == {"train": {"train": ROWS["train"]}, "eval": ROWS["eval"]}
    assert len(ROWS["train"]) == 400
    assert {kind: len(rows) for kind, rows in ROWS["eval"].items()} == {"function": 100, "program": 100}
    assert all(list(row) == ["problem", "tests", "solution", "kind"] for row in ALL)


@pytest.mark.parametrize(("kind", "split"), [("function", "test"), ("essay", "train")])
def test_unknown_kinds_and_splits_are_rejected(kind, split):
    with pytest.raises(ValueError, match="must be"):
        small.generate(kind, split)
