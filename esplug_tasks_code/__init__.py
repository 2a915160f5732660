"""Code task: Python programs, graded by running tests in a sandbox.

A task is a few functions marked ``@hookimpl``. esplug calls them in the order in which they appear here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from esplug import Reward, hookimpl
from esplug.hookspecs import Prompt
from esplug_tasks_code import extraction, prompts, suites
from esplug_tasks_code.grading import budget, grade
from esplug_tasks_code.proof import proven
from esplug_tasks_code.sandbox import Limits, Sandbox
from esplug_tasks_code.suites import Suite

_REWARDS = ("fraction", "all")


@hookimpl
def options() -> Mapping[str, Any]:
    """Declare the options.

    ``template``: chat or plain. ``shots``: worked examples, 0 to 4. ``code``: which part of a chat's answer is the
    program: its last or first fenced block, or its text. ``problem``, ``tests``: names of the columns, or auto.
    ``max_tests``: tests of a row to run, from the first; 0 for all. ``reward``: fraction of tests passed, or all.
    ``sandbox``: bubblewrap or rlimits. ``seconds``: processor time of one run. ``memory``: MiB of one run. ``kind``:
    kind of the small set's problems to keep: function, program or all.
    """
    asked = {"template": "chat", "shots": 0, "code": "last", "problem": "auto", "tests": "auto", "kind": "all"}
    return asked | {"max_tests": 20, "reward": "fraction", "sandbox": "bubblewrap", "seconds": 2.0, "memory": 512}


@hookimpl
def defaults(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave time for all tests of an answer. The plain template ends at the end of the code."""
    _check(options)
    time = {"reward_function_timeout": budget(options["seconds"]) + 20}
    return time | ({"stop": [prompts.FENCE], "max_tokens": 256} if options["template"] == "plain" else {})


@hookimpl
def load_rows(split: str, path: str | None, options: Mapping[str, Any]) -> Any:
    """Prove that the sandbox holds. Return the task's own problems, unless the user named a data set."""
    from esplug_tasks_code import small

    _check(options)
    kinds = list(small.KINDS) if options["kind"] == "all" else [options["kind"]]
    if not set(kinds) <= set(small.KINDS):
        raise ValueError(f"kind must be all or one of {', '.join(small.KINDS)}, not {options['kind']!r}")
    if path is not None and options["kind"] != "all":
        raise ValueError(f"kind chooses among the task's own problems; leave it out with the data set {path}")
    _sandbox(options)
    if path is not None:
        return None
    if split == "train":
        return [row for row in small.rows("train") if row["kind"] in kinds]
    return {kind: small.rows("eval")[kind] for kind in kinds}


@hookimpl
def collate(
    batch: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> tuple[list[prompts.Question], list[Suite]]:
    """Read problems and tests from the columns of the public data sets, or those that the options name."""
    targets = [suites.read(row, options["tests"], options["max_tests"]) for row in batch]
    rows = zip(batch, targets, strict=True)
    return [prompts.question(row, options["problem"], suite) for row, suite in rows], targets


@hookimpl
def template(question: prompts.Question, options: Mapping[str, Any]) -> Prompt:
    """Make a chat, or plain text that ends in an open block of code."""
    return prompts.ask(question, options["template"], options["shots"])


@hookimpl
def reward(model_output: str, target: Suite, options: Mapping[str, Any]) -> Reward:
    """Run the program on the tests: the fraction passed, or 1.0 for all of them."""
    plain = options["template"] == "plain"
    answer = f"{prompts.FENCE}python\n{model_output}\n{prompts.FENCE}" if plain else model_output
    source = extraction.program(answer, "first" if plain else options["code"])
    return grade(source, target, _sandbox(options), every=options["reward"] == "all")


def _sandbox(options: Mapping[str, Any]) -> Sandbox:
    return proven(options["sandbox"], Limits(options["seconds"], options["memory"]))


def _check(options: Mapping[str, Any]) -> None:
    prompts.check(options["template"], options["shots"])
    for name, known in (("code", extraction.CHOICES), ("reward", _REWARDS)):
        if options[name] not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {options[name]!r}")
    if options["template"] == "plain" and options["code"] != "last":
        raise ValueError("code chooses a part of a chat's answer; leave it out with template=plain")
    if options["max_tests"] < 0:
        raise ValueError(f"max_tests must be 0 or more, not {options['max_tests']}")
    if not 0.5 <= options["seconds"] <= 600:
        raise ValueError(f"seconds must be between 0.5 and 600, not {options['seconds']:g}")
    if options["memory"] < 64:
        raise ValueError(f"memory must be at least 64 MiB, not {options['memory']}")
