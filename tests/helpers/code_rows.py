"""Rows of the task ``code``, and their grading without a sandbox."""

import base64
import json
import pickle
import zlib

import esplug_tasks_code as task
from esplug import Reward
from esplug_tasks_code import small

OPTIONS = dict(task.options()) | {"sandbox": "rlimits"}
DOUBLE = {"fn_name": "solve", "inputs": [[1], [5]], "outputs": [2, 10]}


def graded(row, answer, **options) -> Reward:
    chosen = OPTIONS | options
    _, (suite,) = task.collate([{"problem": "Write it."} | row], chosen)
    return task.reward(answer, suite, chosen)


def block(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\n"


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
ROWS = {split: small.rows(split) for split in small.ROWS}
