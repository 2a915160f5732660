"""Grader: runs an answer's program on a suite of tests, and compares the results outside the sandbox."""

import re
import time
from dataclasses import dataclass

from esplug import Reward
from esplug_tasks_code.extraction import MAX_PROGRAM
from esplug_tasks_code.judge import decode
from esplug_tasks_code.sandbox import PATIENCE, Outcome, Sandbox
from esplug_tasks_code.suites import Suite
from esplug_tasks_code.values import same_output, same_value

_TYPES = re.compile(r"\b(?:List|Dict|Tuple|Set|Optional|Union|Any|Callable|Iterable|Iterator|Sequence)\b")
_IMPORT = re.compile(r"^(?:import|from) .*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Tests passed, tests in all, and why not more passed: ``wrong``, ``error`` or ``timeout``."""

    passed: int
    tests: int
    fault: str = "wrong"


def budget(seconds: float) -> float:
    """Return the wall seconds that all tests of an answer may take together."""
    return 3 * PATIENCE * seconds


def grade(source: str | None, suite: Suite, sandbox: Sandbox, *, every: bool) -> Reward:
    """Grade a program.

    Args:
        source: Python code; ``None`` if the answer has none.
        suite: tests.
        sandbox: where the program runs.
        every: whether only a program that passes all tests earns 1.0; otherwise, the fraction of tests passed.

    Returns:
        A reward between 0 and 1, with the fraction of tests passed as the metric ``tests``. Labels: ``correct``,
        ``partial``, ``wrong``, ``error``, ``timeout``, ``no_code``, ``too_long``.

    Raises:
        SandboxError: the sandbox could not be set up.
    """
    if source is None or len(source) > MAX_PROGRAM:
        return Reward(0.0, "no_code" if source is None else "too_long", False, {"tests": 0.0})
    run = {"program": _program, "function": _function, "assertions": _assertions}[suite.kind]
    verdict = run(_complete(source, suite), suite, sandbox)
    share = verdict.passed / verdict.tests
    correct = verdict.passed == verdict.tests
    label = "correct" if correct else "partial" if verdict.passed else verdict.fault
    return Reward(float(correct) if every else share, label, correct, {"tests": share})


def _complete(source: str, suite: Suite) -> str:
    """Return the program with the start of its function, if it only continues that, and with imports for its types."""
    name = re.escape(suite.function)
    if suite.stub and not re.search(rf"\bdef\s+{name}\b|\bclass\s+Solution\b|^{name}\s*=", source, re.MULTILINE):
        source = f"{suite.stub.rstrip()}\n{source}"
    header = _IMPORT.findall(suite.stub)
    if _TYPES.search(source) and "typing" not in source:
        header.append("from typing import *")
    return "\n".join([*header, source]) if header and "from __future__" not in source else source


def _program(source: str, suite: Suite, sandbox: Sandbox) -> Verdict:
    limit = sandbox.limits.seconds
    deadline = time.monotonic() + budget(limit) - PATIENCE * limit  # a test that begins before may take its whole limit
    passed, fault = 0, "wrong"
    for stdin, expected in zip(suite.inputs, suite.outputs, strict=True):
        outcome = sandbox.program(source, stdin)
        passed += outcome.code == 0 and same_output(outcome.output.decode(errors="replace"), expected)
        if outcome.timed_out or time.monotonic() > deadline:
            fault = "timeout"
            break  # the other tests would most likely take as long
        if outcome.code:
            fault = "error"
    return Verdict(passed, len(suite.inputs), fault)


def _function(source: str, suite: Suite, sandbox: Sandbox) -> Verdict:
    replies = sandbox.calls(source, [(suite.function, arguments) for arguments in suite.inputs])
    wrapped = all(isinstance(output, list) and len(output) == 1 for output in suite.outputs)
    passed = 0
    for reply, expected in zip(replies.values, suite.outputs, strict=True):
        try:
            value = None if reply is None else decode(reply)
            passed += reply is not None and (
                same_value(value, expected)
                or (wrapped and same_value(value, expected[0]))  # as APPS and TACO write them
            )
        except (ValueError, RecursionError):
            pass
    fault = "timeout" if replies.timed_out else "wrong" if any(replies.values) else "error"
    return Verdict(passed, len(suite.inputs), fault)


def _assertions(source: str, suite: Suite, sandbox: Sandbox) -> Verdict:
    caught = "except Exception:\n    __verdict__('x')\n__verdict__(';')\n"
    tests = "".join(f"try:\n{_indented(test)}\n{caught}" for test in suite.inputs)
    names = {"candidate": suite.function, suite.function: suite.function}
    outcome: Outcome = sandbox.assertions(source, f"{suite.setup}\n__stand_ins__()\n{tests}", names)
    *parts, end = outcome.output.decode(errors="replace").split(";")
    seen = sum(map(len, parts))
    # An assertion in a loop counts each time. What ended early has an unknown number of them, so it does not count.
    passed = sum(part.count("1") for part in parts if "x" not in part) if end == "." else 0
    return Verdict(passed, max(1, seen), "timeout" if outcome.timed_out else "error" if not seen else "wrong")


def _indented(code: str) -> str:
    return "".join(f"    {line}" for line in code.splitlines(keepends=True)) or "    pass"
