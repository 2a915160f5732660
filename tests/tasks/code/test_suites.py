"""Tests of programs, read from the columns of public data sets."""

import base64
import json
import os
import pickle
import re
import zlib
from pathlib import Path

import pytest

import esplug_tasks_code as task
from esplug import Reward
from esplug_tasks_code import suites
from tests.helpers.code_rows import DOUBLE, HUMAN_EVAL, LCB, LCB_TESTS, MBPP, OPTIONS, SORTED, block, graded


@pytest.mark.parametrize(
    ("row", "right", "wrong", "share"),
    [
        ({"tests": DOUBLE}, "def solve(x):\n    return x * 2", "def solve(x):\n    return x + 1", 0.5),
        ({"tests": json.dumps(DOUBLE)}, "solve = lambda x: 2 * x", "def other(x):\n    return x", 0),
        # APPS and TACO
        (
            {"input_output": json.dumps({"inputs": ["3\n", "4\n"], "outputs": ["9\n", "16\n"]}), "starter_code": ""},
            "print(int(input()) ** 2)",
            "print(9)",
            0.5,
        ),
        (
            {"input_output": json.dumps({"fn_name": "f", "inputs": [[1, 2], [3, 4]], "outputs": [[3], [7]]})},
            "def f(a, b):\n    return a + b",
            "def f(a, b):\n    return [3]",
            0.5,
        ),
        (
            {"input_output": {"inputs": [["3", "1 2 3"]], "outputs": [["6"]]}},
            "input()\nprint(sum(map(int, input().split())))",
            "print(5)",
            0,
        ),
        # LiveCodeBench
        (LCB, SORTED, "class Solution:\n    def work(self, xs, y):\n        return xs + [y]", 0.5),
        (LCB, "        return sorted(xs) + [y]", "        return None", 0),
        (
            {
                "public_test_cases": '[{"input": "2\\n", "output": "4", "testtype": "stdin"}]',
                "private_test_cases": "[]",
            },
            "print(int(input()) * 2)",
            "print(5)",
            0,
        ),
        # tests as in DeepCoder and PRIME
        (
            {"tests": [{"type": "function_call", "fn_name": "f", "input": [3], "output": "abc"}]},
            "def f(n):\n    return 'abcdef'[:n]",
            "def f(n):\n    return 'ab'",
            0,
        ),
        (
            {"tests": [LCB_TESTS[0] | {"metadata": {"func_name": "work"}}]},
            SORTED,
            "def work(xs, y):\n    return 1",
            0,
        ),
        # HumanEval, whole functions and continuations
        (
            HUMAN_EVAL,
            HUMAN_EVAL["prompt"] + HUMAN_EVAL["canonical_solution"],
            "def far(xs, most):\n    return 1",
            1 / 3,
        ),
        (HUMAN_EVAL, HUMAN_EVAL["canonical_solution"], "    return None", 0),
        (HUMAN_EVAL, "def far(xs: List[float], most):\n    return max(xs) - min(xs) > most", "def far(:", 0),
        (
            HUMAN_EVAL
            | {"prompt": 'def half(x):\n    return x / 2\n\n\ndef twice(x: int):\n    """Double x."""\n'}
            | {"test": "def check(candidate):\n    assert half(candidate(3)) == 3\n", "entry_point": "twice"},
            "    return 2 * x",
            "    return x",
            0,
        ),
        # MBPP
        (
            MBPP,
            "def shared(a, b):\n    return tuple(sorted(set(a) & set(b)))",
            "def shared(a, b):\n    return sorted(set(a) & set(b))",
            1 / 3,
        ),
        ({"problem": "Add.", "tests": ["assert add(1, 2) == 3"]}, "def add(a, b):\n    return a + b", "add = None", 0),
    ],
)
def test_rows_of_public_data_sets_are_graded(row, right, wrong, share):
    assert graded(row, block(right)) == Reward(1.0, "correct", True, {"tests": 1.0})
    reward = graded(row, block(wrong))
    assert reward.value == reward.metrics["tests"] == pytest.approx(share)
    assert not reward.correct
    assert graded(row, block(wrong), reward="all").value == 0.0
    assert graded(row, block(right), reward="all").value == 1.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tests": {"inputs": [1], "outputs": [1, 2]}}, "1 inputs and 2 outputs"),
        ({"tests": {"inputs": [], "outputs": []}}, "there are no tests"),
        ({"tests": []}, "'tests'"),
        ({"tests": {"inputs": ["1"]}}, "KeyError: 'outputs'"),
        ({"tests": 3}, "TypeError"),
        ({"tests": [1]}, "AttributeError"),
        ({"tests": {"fn_name": "f", "inputs": ["x"], "outputs": [1]}}, "column 'tests'"),
        ({"tests": {"fn_name": "f", "inputs": [3], "outputs": [1]}}, "arguments of a call are not a list"),
        ({"tests": [LCB_TESTS[0]]}, "no function is named"),
        ({"tests": ["assert (1"]}, "SyntaxError"),
        ({"tests": ["assert 1 + 1"]}, "calls no function"),
        ({"public_test_cases": "[]", "private_test_cases": "AAAA"}, "neither JSON nor"),
    ],
)
def test_malformed_tests_are_named(row, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        suites.read(row, "auto", 20)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("/tmp/esplug-was-here",)


@pytest.mark.parametrize("content", [Evil(), ["x"], b"x", {"x": "y"}], ids=lambda content: type(content).__name__)
def test_private_tests_are_never_unpickled(content):
    packed = base64.b64encode(zlib.compress(pickle.dumps(content))).decode()
    with pytest.raises(ValueError, match="neither JSON nor a compressed pickle of JSON"):
        suites.read({"public_test_cases": "[]", "private_test_cases": packed}, "auto", 20)
    assert not Path("/tmp/esplug-was-here").exists()


def test_the_first_tests_are_kept():
    row = {"tests": {"inputs": list("12345"), "outputs": list("12345")}}
    assert [len(suites.read(row, "auto", most).inputs) for most in (2, 0, 9)] == [2, 5, 5]


def test_samples_show_one_test():
    _, (suite,) = task.collate([{"problem": "Double.", "tests": DOUBLE}], OPTIONS)
    assert str(suite) == "2 tests of solve, such as solve(1) == 2"
    assert str(suites.read(MBPP, "auto", 0)) == f"3 tests of shared, such as {MBPP['test_list'][0]}"
