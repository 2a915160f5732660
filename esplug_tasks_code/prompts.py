"""Prompts that ask for a Python program."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esplug.hookspecs import Prompt
from esplug_tasks_code.suites import Suite

TEMPLATES = ("chat", "plain")
#: Columns of the problem in public data sets; the first that a row has counts.
COLUMNS = ("problem", "question_content", "question", "prompt", "text")
FENCE = "```"

#: Solved problems for small and base models, by the kind of their tests.
EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "function": (
        ("Write a function solve(x) that returns x plus 50.", "def solve(x):\n    return x + 50\n"),
        ("Write a function solve(s) that returns s in capital letters.", "def solve(s):\n    return s.upper()\n"),
        ("Write a function solve(xs) that returns the length of the list xs.", "def solve(xs):\n    return len(xs)\n"),
        ("Write a function solve(x) that returns whether x is negative.", "def solve(x):\n    return x < 0\n"),
    ),
    "program": (
        ("Write a program that reads a whole number x and prints x plus 50.", "x = int(input())\nprint(x + 50)\n"),
        ("Write a program that reads a line s and prints it in capital letters.", "s = input()\nprint(s.upper())\n"),
        (
            "Write a program that reads whole numbers xs on one line and prints how many there are.",
            "xs = list(map(int, input().split()))\nprint(len(xs))\n",
        ),
        (
            "Write a program that reads a whole number x and prints whether it is negative.",
            "x = int(input())\nprint(x < 0)\n",
        ),
    ),
}
_REQUESTS = {
    "program": "Write a Python program that reads standard input and writes the answer to standard output.",
    "function": "Write the Python function `{}`.",
    "assertions": "Write the Python function `{}`.",
}


@dataclass(frozen=True, slots=True)
class Question:
    """A problem, the kind of its tests, what to write, and the code to start from."""

    problem: str
    kind: str
    request: str
    starter: str


def question(row: Mapping[str, Any], column: str, suite: Suite) -> Question:
    """Make the question of a row.

    Args:
        row: of a data set.
        column: name of the column with the problem; ``auto`` for the first of :data:`COLUMNS` that the row has.
        suite: the row's tests. One of MBPP's is shown, because its problems do not name the function.

    Raises:
        KeyError: the row has no such column.
        ValueError: there is no text in it.
    """
    if column == "auto":
        column = next((name for name in COLUMNS if row.get(name)), COLUMNS[0])
    problem = row[column]
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f"column {column!r}: {problem!r:.80} is not a problem in words")
    request = _REQUESTS[suite.kind].format(suite.function)
    if suite.kind == "assertions" and not suite.stub:
        request += f" For example:\n{suite.shown}"
    starter = "" if suite.stub.strip() == problem.strip() else suite.stub
    return Question(problem.strip(), suite.kind, request, starter)


def check(template: str, shots: int) -> None:
    """Check the options.

    Raises:
        ValueError: the template does not exist, or does not take so many worked examples.
    """
    if template not in TEMPLATES:
        raise ValueError(f"template must be one of {', '.join(TEMPLATES)}, not {template!r}")
    if not 0 <= shots <= (most := len(EXAMPLES["function"])):
        raise ValueError(f"shots must be between 0 and {most}, not {shots}")


def ask(asked: Question, template: str, shots: int) -> Prompt:
    """Return the prompt of a question, after ``shots`` worked examples."""
    examples = EXAMPLES["program" if asked.kind == "program" else "function"][:shots]
    if template == "plain":
        solved = (f"{problem}\n{FENCE}python\n{solution}{FENCE}\n\n" for problem, solution in examples)
        # The answer continues on a line of its own, with the indentation.
        starter = f"{asked.starter.rstrip()}\n" if asked.starter.strip() else ""
        return f"{''.join(solved)}{asked.problem}\n{FENCE}python\n{starter}"
    messages = []
    for problem, solution in examples:
        messages.append({"role": "user", "content": _message(problem)})
        messages.append({"role": "assistant", "content": f"{FENCE}python\n{solution}{FENCE}"})
    starter = f" Start from:\n{FENCE}python\n{asked.starter.rstrip()}\n{FENCE}" if asked.starter.strip() else ""
    return [*messages, {"role": "user", "content": _message(f"{asked.problem}\n\n{asked.request}{starter}")}]


def _message(text: str) -> str:
    return f"{text}\n\nPut the complete code into one {FENCE}python block."
