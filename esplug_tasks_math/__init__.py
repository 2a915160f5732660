r"""Mathematics task: problems whose final answer is in the last ``\boxed{...}``.

A task is a few functions marked ``@hookimpl``. esplug calls them in the order in which they appear here. This module
imports the grader, so that a grading process loads mpmath when it starts and not within the first answer's time limit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from esplug import Reward, hookimpl
from esplug.hookspecs import Prompt
from esplug_tasks_math import prompts
from esplug_tasks_math.form import FORMS
from esplug_tasks_math.grading import Gold, grade


@hookimpl
def options() -> Mapping[str, Any]:
    """Declare the options.

    ``template``: qwen, chat, r1 or none. ``shots``: worked examples before each problem, 0 to 4. ``problem`` and
    ``answer``: names of the columns. ``kind``: kind of the small set's problems to keep. ``exact_form``: how far an
    answer must be simplified: off, numbers or strict; auto for the column ``exact_form`` of the row, or else numbers.
    """
    columns = {"problem": "problem", "answer": "answer"}
    return {"template": "qwen", "shots": 0, **columns, "kind": "all", "exact_form": "auto"}


@hookimpl
def defaults(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Allow enough tokens to reason. Grading takes milliseconds, so 5 s stop only malicious answers."""
    prompts.check(options["template"], options["shots"])
    _check_form(options["exact_form"], "auto", *FORMS)
    common = {"max_tokens": 1024, "reward_function_timeout": 5.0}
    return common | {"stop": ["</answer>"]} if options["template"] == "r1" else common


@hookimpl
def load_rows(split: str, path: str | None, options: Mapping[str, Any]) -> Any:
    """Return the task's own small problem sets, unless the user named a data set, which esplug reads."""
    from esplug_tasks_math import small
    from esplug_tasks_math.structures import KINDS

    kinds = list(KINDS) if options["kind"] == "all" else [options["kind"]]
    if not set(kinds) <= set(KINDS):
        raise ValueError(f"kind must be all or one of {', '.join(KINDS)}, not {options['kind']!r}")
    if path is not None:
        if options["kind"] != "all":
            raise ValueError(f"kind chooses among the task's own problems; leave it out with the data set {path}")
        return None
    if split == "train":
        return [row for row in small.rows("train") if row["kind"] in kinds]
    return {kind: small.rows("eval")[kind] for kind in kinds}


@hookimpl
def collate(batch: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Read problems and answers from the columns that the options name, and how exact the answers must be."""
    prompts.check(options["template"], options["shots"])
    chosen = options["exact_form"]
    forms: list[Any] = [(row.get("exact_form") or "numbers") if chosen == "auto" else chosen for row in batch]
    for form in forms:
        _check_form(form, *FORMS)
    answers = zip(_texts(batch, options["answer"]), forms, strict=True)
    golds = [answer if form == "numbers" else Gold.of(answer, form) for answer, form in answers]
    return _texts(batch, options["problem"]), golds


@hookimpl
def template(question: str, options: Mapping[str, Any]) -> Prompt:
    """Make a prompt in the format that the option ``template`` names."""
    return prompts.ask(question, options["template"], options["shots"])


@hookimpl
def reward(model_output: str, target: str) -> Reward:
    """Give 1.0 for the expected answer in the last box, and 0.0 for anything else."""
    return grade(model_output, target, target.exact_form if isinstance(target, Gold) else "numbers")


def _check_form(form: Any, *known: str) -> None:
    if form not in known:
        raise ValueError(f"exact_form must be one of {', '.join(known)}, not {form!r}")


def _texts(batch: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    texts = [str(row[column]) if row[column] == row[column] else "" for row in batch]  # NaN is not itself
    for number, (row, text) in enumerate(zip(batch, texts, strict=True), start=1):
        if row[column] is None or not text.strip():
            raise ValueError(f"row {number} has nothing in its column {column!r}")
        if isinstance(row[column], list | dict):
            raise ValueError(f"row {number} has a {type(row[column]).__name__} in its column {column!r}, not text")
    return texts
