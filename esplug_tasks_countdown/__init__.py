"""Countdown task: combine the given numbers, each exactly once, with + - * / to reach the target.

A task is a few functions marked ``@hookimpl``. esplug calls them in the order in which they appear here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from esplug import Reward, hookimpl
from esplug_tasks_countdown import columns, grading, prompts, puzzles


@hookimpl
def options() -> Mapping[str, Any]:
    """Declare the options.

    ``shots``: worked examples, 0 to 8. ``level``: standard or easy. ``think_words``: different words that a think block
    needs to count for the format.
    """
    return {"shots": 0, "level": "standard", "think_words": 0}


@hookimpl
def defaults(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Stop at the closing tag. After worked examples, short answers suffice."""
    _think_words(options)
    stop = {"stop": ["</answer>"]}
    return stop | {"max_tokens": 64} if _shots(options) else stop


@hookimpl
def load_rows(split: str, path: str | None, options: Mapping[str, Any]) -> Any:
    """Generate the rows, unless the user named a data set, which esplug reads."""
    if path is not None:
        return None
    rows = puzzles.rows(options["level"], split)
    return rows if split == "train" else {"countdown_eval": rows}


@hookimpl
def collate(batch: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Prompt with the row's own text or with worked examples, and grade against its numbers and target."""
    shots = _shots(options)
    reasoning = {"think_words": words} if (words := _think_words(options)) else {}
    questions, targets = [], []
    for row in batch:
        numbers, target = columns.numbers(row["numbers"]), columns.target(row["target"])
        questions.append(prompts.few_shot(shots, numbers, target) if shots else columns.text(row["context"]))
        # As text, the target is exact, and readable in logged samples.
        targets.append({"numbers": numbers, "target": str(target)} | reasoning)
    return questions, targets


@hookimpl
def template(question: str) -> str:
    """Return the prompt as it is: it ends with ``<think>``, and the model continues from there."""
    return question


@hookimpl
def reward(model_output: str, target: Mapping[str, Any]) -> Reward:
    """Give 1 for a correct answer, and up to 0.1 for the requested format."""
    goal = columns.target(target["target"])
    return grading.grade(model_output, target["numbers"], goal, target.get("think_words", 0))


def _shots(options: Mapping[str, Any]) -> int:
    shots: int = options["shots"]
    if not 0 <= shots <= len(prompts.EXAMPLES):
        raise ValueError(f"shots must be between 0 and {len(prompts.EXAMPLES)}, not {shots}")
    return shots


def _think_words(options: Mapping[str, Any]) -> int:
    words: int = options["think_words"]
    if words < 0:
        raise ValueError(f"think_words must be 0 or more, not {words}")
    return words
