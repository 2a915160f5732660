"""The code task: extraction, test suites of public data sets, comparison, the sandbox, the small set and the hooks."""

import base64
import errno
import fcntl
import json
import os
import pickle
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pluggy
import pytest

import esplug_tasks_code as task
from esplug import Reward
from esplug.hookspecs import PROJECT, TaskSpec
from esplug.testing import task_checks
from esplug_tasks_code import extraction, judge, prompts, proof, sandbox, small, solver, suites, values
from tests.helpers.sandboxes import available

F_SETSIG, F_SETOWN_EX = 10, 15
OPTIONS = dict(task.options()) | {"sandbox": "rlimits"}
DOUBLE = {"fn_name": "solve", "inputs": [[1], [5]], "outputs": [2, 10]}


def graded(row, answer, **options) -> Reward:
    chosen = OPTIONS | options
    _, (suite,) = task.collate([{"problem": "Write it."} | row], chosen)
    return task.reward(answer, suite, chosen)


def block(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\n"


# --- the program of an answer --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "last", "first"),
    [
        ("```python\nx = 1\n```", "x = 1\n", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n", "x = 1\n"),
        ("```py\nx = 1\n```\nThen:\n```Python3\nx = 2\n```", "x = 2\n", "x = 1\n"),
        ("```python\nx = 1\n```\nOutput:\n```text\n1\n```", "x = 1\n", "x = 1\n"),
        ("```bash\nls\n```\n```python\nx = 1\n```", "x = 1\n", "x = 1\n"),
        ("```python\nx = 1\n```\nor\n```python\nx = 2", "x = 1\n", "x = 1\n"),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n", "  x = 1\n"),
        ("```python\r\nx = '\x0c\u2028'\r\n```\r\n", "x = '\x0c\u2028'\r\n", "x = '\x0c\u2028'\r\n"),
        ("```python\nx = '```'\ny = 2\n```", "x = '```'\ny = 2\n", "x = '```'\ny = 2\n"),
        ("```python\n\n```", None, None),
        ("```python\nx = 1", None, None),
        ("x = 1", None, None),
        ("", None, None),
    ],
)
def test_blocks_are_found(answer, last, first):
    assert extraction.program(answer, "last") == last
    assert extraction.program(answer, "first") == first


def test_the_whole_text_may_be_the_program():
    assert extraction.program("x = 1", "text") == "x = 1"
    assert extraction.program(" \n", "text") is None


# --- the columns of public data sets -------------------------------------------------------------------------

HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef far(xs: List[float], most: float) -> bool:\n    """Say whether."""\n',
    "entry_point": "far",
    "canonical_solution": "    return max(xs) - min(xs) > most\n",
    "test": (
        "\n\nMETADATA = {'author': 'x'}\n\n\ndef check(candidate):\n    assert candidate([1.0, 2.0], 0.5) == True\n"
        "    assert candidate([1.0, 1.1], 0.5) == False\n    assert True, 'always'\n"
        "    assert abs(candidate([3.0], 1) - 0) < 1e-6\n"
    ),
}
MBPP = {
    "text": "Write a function to find the shared elements of two tuples.",
    "test_list": [
        "assert shared((3, 4, 5), (5, 7, 4)) == (4, 5)",
        "assert set(shared((1, 2), (5, 2))) == set((2,))",
        "assert shared((11,), (13,)) == ()",
    ],
    "test_setup_code": "",
}
LCB_TESTS = [{"input": "[3, 1]\n2", "output": "[1, 3, 2]", "testtype": "functional"}]
LCB = {
    "question_content": "Sort xs and add y.",
    "starter_code": "class Solution:\n    def work(self, xs: List[int], y: int) -> List[int]:\n        ",
    "public_test_cases": json.dumps(LCB_TESTS),
    "private_test_cases": base64.b64encode(
        zlib.compress(pickle.dumps(json.dumps([LCB_TESTS[0] | {"input": "[]\n7", "output": "[7]"}])))
    ).decode(),
    "metadata": json.dumps({"func_name": "work"}),
}
SORTED = "class Solution:\n    def work(self, xs: List[int], y: int):\n        return sorted(xs) + [y]"


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


# --- comparison ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("1\n2\n", "1\n2", True),
        (" 1  2 \n\n", "1 2", True),
        ("1 2", "1\n2", False),
        ("1", "1\n2", False),
        ("YES", "yes", False),
        ("1.0", "1", True),
        ("0.3333333", "0.33333334", True),
        ("0.333", "0.33333334", False),
        ("10000001", "10000002", False),
        ("007", "7", False),
        ("nan", "1.0", False),
        ("inf", "1e9", False),
        ("", "", True),
        ("", "0", False),
        ("9" * 5000, "9" * 5000, True),
        ("9" * 5000, "1.0", False),
        ("\u0661", "1", False),
    ],
)
def test_outputs_are_compared(given, expected, same):
    assert values.same_output(given, expected) == same


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ((1, [2]), [1, [2]], True),
        ([1], [1, 1], False),
        (0.1 + 0.2, 0.3, True),
        (1, 1.0, True),
        (float("nan"), 1.0, False),
        (float("inf"), 10**400, False),
        (1.5, 10**400, False),
        ("1", 1, False),
        ({1: (2,)}, {"1": [2]}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        (None, None, True),
        ("a", "a", True),
        ([], {}, False),
    ],
)
def test_values_are_compared(given, expected, same):
    assert values.same_value(given, expected) == same


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -(10**50), 1.5, "a\n\"\u20ac\U0001f600", [], [1, [2]], (), (1, (2,)), {1, 2}, {},
        frozenset({3}), {"a": {1: (2,)}, (1, 2): None}, b"\x00\xff", 1 + 2j, float("inf"), -float("inf"),
    ],
    ids=repr,
)  # fmt: skip
def test_plain_data_survive_the_way_out_of_the_sandbox(value):
    back = judge.decode(solver.encode(value).encode())
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [object(), iter([]), range(3), print, Reward])
def test_other_values_do_not(value):
    with pytest.raises(TypeError):
        solver.encode(value)


@pytest.mark.parametrize("text", ["", "x", "[]", '["z", 1]', "{}", '[["l"]]', '["d", 1]', '["b", 1]', "[" * 10**5])
def test_forged_values_are_rejected(text):
    with pytest.raises(ValueError, match="not an encoded value"):
        judge.decode(text.encode())


# --- the sandbox ---------------------------------------------------------------------------------------------


def _read(path: str) -> str:
    return f"try:\n    print(len(open({path!r}, 'rb').read(10)))\nexcept OSError:\n    print('no')\n"


def test_a_program_in_bubblewrap_sees_nothing_of_the_machine(tmp_path, monkeypatch):
    available("bubblewrap")
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    monkeypatch.setenv("SECRET", "the secret")
    hidden = [
        str(secret),
        "/etc/passwd",
        "/proc/self/environ",
        "/etc/shadow",
        str(Path(task.__file__)),
        pytest.__file__,
    ]
    code = "".join(map(_read, hidden)) + "import os\nprint(sorted(os.environ))\nprint(os.listdir('.'))\n"
    outcome = sandbox.Sandbox("bubblewrap").program(code, "")
    *found, environment, files = outcome.output.decode().splitlines()
    assert found == ["no"] * len(hidden)
    assert "SECRET" not in environment
    assert files == "[]"


@pytest.mark.parametrize("kind", sandbox.KINDS)
def test_a_sandbox_bounds_what_a_program_takes(kind):
    available(kind)
    limited = sandbox.Sandbox(kind, sandbox.Limits(seconds=0.5, memory=128))
    assert proof.possible(limited) == proof.ALLOWED[kind]
    assert limited.program("while True: pass", "").timed_out
    assert limited.program("import time\ntime.sleep(99)", "").timed_out
    assert (
        b"MemoryError" in limited.program("try: bytearray(1 << 27)\nexcept MemoryError as e: print(repr(e))", "").output
    )
    assert len(limited.program("while True: print('x' * 9999)", "").output) == sandbox.MAX_FILE
    assert limited.program("import sys\nprint(sys.stdin.read())", "\u20ac\n").output == "\u20ac\n\n".encode()
    threads = "import threading\nt = threading.Thread(target=print, args=(1,))\nt.start()\nt.join()"
    assert limited.program(threads, "").output == b"1\n"
    assert limited.program("raise ValueError", "").code == 1


@pytest.mark.parametrize("command", [fcntl.F_SETOWN, F_SETSIG, F_SETOWN_EX, fcntl.F_SETOWN + (1 << 32)])
def test_no_descriptor_may_send_a_signal(command):
    code = f"""
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall({{"x86_64": 72}}.get(os.uname().machine, 25), 0, ctypes.c_long({command}), 0), ctypes.get_errno())
"""
    assert sandbox.Sandbox("rlimits").program(code, "").output == f"-1 {errno.EPERM}\n".encode()


@pytest.mark.parametrize(
    ("kind", "program", "message"),
    [
        ("jail", None, "sandbox must be one of bubblewrap, rlimits, not 'jail'"),
        ("bubblewrap", None, "does not work here [bwrap is not installed]; install bubblewrap"),
        ("bubblewrap", "echo 'bwrap: No permissions' >&2; exit 1", "[bwrap: No permissions]; install bubblewrap and"),
        ("bubblewrap", "exit 0", "[a program in it does not answer"),
        (
            "bubblewrap",
            f'while [ "$1" != -B ]; do shift; done; shift 2; exec {sys.executable} -S -P {solver.__file__} "$@"',
            "does not hold here: programs can open a socket, read files, read installed packages, send signals, start",
        ),
    ],
)
def test_a_sandbox_that_does_not_hold_is_refused(kind, program, message, tmp_path, monkeypatch):
    if program:
        (tmp_path / "bwrap").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if program else str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        task.load_rows("train", None, OPTIONS | {"sandbox": kind, "seconds": 1.25})
    assert "\n" not in str(caught.value)
    assert kind == "jail" or "--task-option sandbox=rlimits, in which programs can read" in str(caught.value)


def test_the_weaker_sandbox_says_what_it_does_not_protect(capfd):
    proof.proven.cache_clear()
    for split in ("train", "eval"):
        task.load_rows(split, None, OPTIONS)
    assert (
        capfd.readouterr().err.count("sandbox=rlimits: programs can read, change and delete all files that you can")
        == 1
    )


def test_a_sandbox_that_fails_later_is_an_error_and_not_a_wrong_answer(monkeypatch):
    suite = suites.read({"tests": DOUBLE}, "auto", 0)
    fails = sandbox.Sandbox("rlimits")
    monkeypatch.setattr(fails, "command", lambda *_: ["/bin/sh", "-c", "echo 'bwrap: out of memory' >&2; exit 1"])
    monkeypatch.setattr(task, "proven", lambda *_: fails)
    with pytest.raises(sandbox.SandboxError, match="out of memory"):
        task.reward(block("def solve(x): return 2 * x"), suite, OPTIONS)


def test_a_failure_of_the_sandbox_of_an_answer_to_assertions_is_an_error(monkeypatch):
    fails = sandbox.Sandbox("rlimits")
    command = fails.command
    failing = ["/bin/sh", "-c", "echo 'bwrap: out of memory' >&2; exit 1"]
    monkeypatch.setattr(fails, "command", lambda name, file: failing if name == "solver.py" else command(name, file))
    monkeypatch.setattr(task, "proven", lambda *_: fails)
    with pytest.raises(sandbox.SandboxError, match="out of memory"):
        graded(MBPP, block("def shared(a, b): return ()"))


# --- grading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "label", "value"),
    [
        (block("def solve(x):\n    return x * 2"), "correct", 1.0),
        (block("def solve(x):\n    print('noise', flush=True)\n    return x * 2"), "correct", 1.0),
        (block("def solve(x):\n    return 2"), "partial", 0.5),
        (block("def solve(x):\n    return x"), "wrong", 0.0),
        (block("def solve(x):\n    return y"), "error", 0.0),
        (block("def solve(x) return x"), "error", 0.0),
        (block("def solve(x):\n    while True: pass"), "timeout", 0.0),
        ("def solve(x):\n    return x * 2", "no_code", 0.0),
        (block("x = '" + "x" * 70_000 + "'"), "too_long", 0.0),
        (block("def solve(x):\n    return '\ud800'"), "error", 0.0),
    ],
)
def test_answers_get_labels(answer, label, value):
    assert graded({"tests": DOUBLE}, answer, seconds=0.5) == Reward(value, label, label == "correct", {"tests": value})


def test_a_program_that_fails_after_the_right_output_earns_nothing():
    row = {"tests": {"inputs": ["", ""], "outputs": ["1", "2"]}}
    assert graded(row, block("print(1)\n1 / 0")).label == "error"
    assert graded(row, block("print(1)")).value == 0.5


LOOP = HUMAN_EVAL | {
    "prompt": 'def twice(x: int):\n    """Double x."""\n',
    "entry_point": "twice",
    "test": "def check(candidate):\n    for x in range(10):\n        y = candidate(x)\n        assert y == 2 * x\n",
}
INSIDE = "def check(candidate):\n    for x in range(10):\n        assert candidate(x) == 2 * x\n"
MAPPED = {"test_list": ["assert all(map(lambda x: twice(x) == 2 * x, [1, 2]))"]}


@pytest.mark.parametrize(
    ("row", "end", "value", "label"),
    [
        (LOOP, "return 0", 0.5, "partial"),
        (LOOP, "time.sleep(99)", 0.0, "timeout"),
        (LOOP, "return y", 0.0, "wrong"),
        (LOOP, "raise StopIteration", 0.0, "wrong"),
        (LOOP, "os._exit(0)", 0.0, "wrong"),
        (LOOP | {"test": INSIDE}, "time.sleep(99)", 0.5, "partial"),
        (MAPPED, "raise StopIteration", 0.0, "wrong"),
        ({"test_list": ["assert twice(7) == 14"]}, "while True: pass", 0.0, "timeout"),
    ],
)
def test_assertions_that_were_never_reached_do_not_count_as_passed(row, end, value, label):
    code = f"import os, time\ndef twice(x):\n    if x < 5 and {row is not MAPPED}: return 2 * x\n    {end}"
    reward = graded(row, block(code), seconds=0.5)
    assert (reward.value, reward.label) == (value, label)


def test_each_program_runs_afresh():
    row = {"tests": {"inputs": ["1", "2"], "outputs": ["[]", "[]"]}}
    assert graded(row, block("import os\nprint(os.listdir('.'))\nopen('x', 'w').close()")).correct


def test_sets_have_the_same_order_every_time():
    row = {"tests": {"inputs": [""] * 3, "outputs": [f"{order}\n" for order in ("x", "x", "x")]}}
    _, (suite,) = task.collate([{"problem": "x"} | row], OPTIONS)
    held = sandbox.Sandbox("rlimits")
    outputs = {held.program("print(list({'a', 'b', 'c', 'd'}))", stdin).output for stdin in suite.inputs}
    assert len(outputs) == 1


# --- the small set -------------------------------------------------------------------------------------------

ROWS = {split: small.rows(split) for split in small.ROWS}
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


# --- hooks and prompts ---------------------------------------------------------------------------------------


@pytest.fixture
def hooks():
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(TaskSpec)
    manager.register(task)
    manager.check_pending()
    return manager.hook


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("template", "r1", "template must be one of chat, plain, not 'r1'"),
        ("shots", 5, "shots must be between 0 and 4, not 5"),
        ("code", "all", "code must be one of last, first, text, not 'all'"),
        ("reward", "half", "reward must be one of fraction, all, not 'half'"),
        ("max_tests", -1, "max_tests must be 0 or more, not -1"),
        ("seconds", 0.1, "seconds must be between 0.5 and 600, not 0.1"),
        ("memory", 1, "memory must be at least 64 MiB, not 1"),
    ],
)
def test_wrong_options_are_rejected(hooks, option, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        hooks.defaults(options=OPTIONS | {option: value})


def test_options_that_would_be_ignored_are_rejected(hooks):
    with pytest.raises(ValueError, match="leave it out with template=plain"):
        hooks.defaults(options=OPTIONS | {"template": "plain", "code": "first"})
    with pytest.raises(ValueError, match=r"leave it out with the data set rows\.jsonl"):
        hooks.load_rows(split="train", path="rows.jsonl", options=OPTIONS | {"kind": "function"})
    with pytest.raises(ValueError, match="kind must be all or one of function, program, not 'essay'"):
        hooks.load_rows(split="train", path=None, options=OPTIONS | {"kind": "essay"})


def test_rows_are_the_tasks_own_or_read_by_esplug(hooks):
    assert hooks.load_rows(split="train", path=None, options=OPTIONS) == ROWS["train"]
    assert hooks.load_rows(split="eval", path=None, options=OPTIONS) == ROWS["eval"]
    functions = hooks.load_rows(split="eval", path=None, options=OPTIONS | {"kind": "function"})
    assert functions == {"function": ROWS["eval"]["function"]}
    assert hooks.load_rows(split="train", path="rows.jsonl", options=OPTIONS) is None


@pytest.mark.parametrize("shots", [0, 1, 4])
@pytest.mark.parametrize("kind", small.KINDS)
def test_the_plain_prompt_continues_with_the_code(hooks, kind, shots):
    options = OPTIONS | {"template": "plain", "shots": shots}
    row = ROWS["eval"][kind][0]
    (question,), (suite,) = hooks.collate(batch=[row], options=options)
    prompt = hooks.template(question=question, options=options)
    assert prompt.endswith(f"{row['problem']}\n```python\n")
    assert prompt.count("```") == 2 * shots + 1
    assert hooks.reward(model_output=row["solution"], target=suite, options=options).correct
    assert hooks.reward(model_output=f"{row['solution']}```\n```\n1/0\n```", target=suite, options=options).correct
    assert "```" in hooks.defaults(options=options)["stop"]


def test_an_answer_continues_starter_code_on_a_line_of_its_own(hooks):
    options = OPTIONS | {"template": "plain"}
    (question,), (suite,) = hooks.collate(batch=[LCB], options=options)
    assert hooks.template(question=question, options=options).endswith(LCB["starter_code"].rstrip() + "\n")
    assert hooks.reward(model_output="        return sorted(xs) + [y]\n", target=suite, options=options).correct


def test_the_time_limit_allows_for_the_slowest_tests(hooks):
    for seconds in (0.5, 2.0, 600.0):
        most = 3 * sandbox.PATIENCE * seconds  # the last test begins after two thirds at most
        assert hooks.defaults(options=OPTIONS | {"seconds": seconds})["reward_function_timeout"] >= most + 10


@pytest.mark.parametrize("kind", small.KINDS)
def test_examples_are_right(hooks, kind):
    cases = {
        "x": {"inputs": ["7\n", "-3\n"], "outputs": {0: ["57\n", "47\n"], 3: ["False\n", "True\n"]}},
        "s": {"inputs": ["a b\n"], "outputs": {1: ["A B\n"]}},
        "xs": {"inputs": ["1 2 3\n"], "outputs": {2: ["3\n"]}},
    }
    read = {
        "x": lambda line: int(line),
        "s": lambda line: line.strip(),
        "xs": lambda line: list(map(int, line.split())),
    }
    for name, case in cases.items():
        for number, outputs in case["outputs"].items():
            tests = {"inputs": case["inputs"], "outputs": outputs}
            if kind == "function":
                expected = [json.loads(each.lower()) if name != "s" else each.strip() for each in outputs]
                tests = {
                    "fn_name": "solve",
                    "inputs": [[read[name](each)] for each in tests["inputs"]],
                    "outputs": expected,
                }
            assert graded({"tests": tests}, block(prompts.EXAMPLES[kind][number][1])).correct


def test_chats_show_what_to_write(hooks):
    def message(row, **options):
        (question,), _ = hooks.collate(batch=[row], options=OPTIONS | options)
        return hooks.template(question=question, options=OPTIONS | options)

    (only,) = message(HUMAN_EVAL)
    assert HUMAN_EVAL["prompt"].strip() in only["content"]
    assert "Write the Python function `far`." in only["content"]
    assert "candidate" not in only["content"]
    assert only["content"].endswith("Put the complete code into one ```python block.")
    (only,) = message(MBPP)
    assert MBPP["test_list"][0] in only["content"]
    assert MBPP["test_list"][1] not in only["content"]
    (only,) = message(LCB)
    assert LCB["starter_code"].rstrip() in only["content"]
    chat = message(ROWS["train"][1], shots=2)
    assert [turn["role"] for turn in chat] == ["user", "assistant"] * 2 + ["user"]
    assert "standard input" in chat[-1]["content"]
    assert extraction.program(chat[1]["content"], "last") == prompts.EXAMPLES["program"][0][1]


@pytest.mark.parametrize("problem", ["", "  ", None, 3])
def test_a_problem_without_words_is_named(hooks, problem):
    with pytest.raises(ValueError, match=r"column 'problem': .* is not a problem in words"):
        hooks.collate(batch=[{"problem": problem, "tests": DOUBLE}], options=OPTIONS)


def test_a_missing_column_is_a_key_error(hooks):
    with pytest.raises(KeyError, match="tests"):
        hooks.collate(batch=[{"problem": "Double x."}], options=OPTIONS)
    with pytest.raises(KeyError, match="problem"):
        hooks.collate(batch=[{"tests": DOUBLE}], options=OPTIONS)
    with pytest.raises(KeyError, match="cases"):
        hooks.collate(batch=[{"problem": "Double x.", "tests": DOUBLE}], options=OPTIONS | {"tests": "cases"})


def test_the_conformance_checks_pass():
    checks = task_checks(task, {"sandbox": "rlimits"})
    assert [check for check in checks if not check.ok or check.skipped] == []
