"""Labels and rewards of answers with programs."""

import pytest

import esplug_tasks_code as task
from esplug import Reward
from esplug_tasks_code import sandbox
from tests.helpers.code_rows import DOUBLE, HUMAN_EVAL, OPTIONS, block, graded


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
