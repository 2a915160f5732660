"""Grading: the score of the library's grader, behind the guards."""

import copy
from collections.abc import Mapping
from typing import Any

from esplug import Reward
from esplug_tasks_reasoning_gym import generators, guards
from esplug_tasks_reasoning_gym.selection import Selection

#: Tasks whose grader compares with tuples, which JSON turned into lists: the board in this item of the metadata.
_BOARDS = {"arc_agi": "output", "rearc": "output"}


def grade(answer: str | None, target: Mapping[str, Any], selection: Selection) -> Reward:
    """Grade an answer.

    Args:
        answer: from :func:`.answers.find`.
        target: ``task``, the right ``answer`` and the ``metadata`` of a row.
        selection: of the run, with the options of the row's generator.

    Returns:
        The library's score, from 0 to 1, with the label ``correct`` for 1, ``partial`` for less, ``wrong`` for 0,
        ``no_answer``, ``rejected`` by a guard, or ``unreadable`` if the grader raises. If the selection has several
        generators, labels are ``<generator>/correct`` and so on, and the score is also a metric with the generator's
        name.
    """
    task = target["task"]
    score, label = _score(answer, target, selection)
    if len(selection.choices) == 1:
        return Reward(score, label, label == "correct")
    return Reward(score, f"{task}/{label}", label == "correct", {task: score})


def _score(answer: str | None, target: Mapping[str, Any], selection: Selection) -> tuple[float, str]:
    if answer is None:
        return 0.0, "no_answer"
    if not guards.accepts(answer, target):
        return 0.0, "rejected"
    task = target["task"]
    grader = generators.instance(task, selection[task].options)
    guards.disarm(grader)
    try:
        score = float(grader.score_answer(answer, _entry(target)))
    except MemoryError:
        raise
    except Exception:  # many graders expect a number, or JSON of a certain form
        return 0.0, "unreadable"
    if not 0 <= score <= 1:  # NaN too
        return 0.0, "unreadable"
    return score, "correct" if score == 1 else "partial" if score else "wrong"


def _entry(target: Mapping[str, Any]) -> dict[str, Any]:
    """Return the library's entry. A copy, because graders may change it."""
    metadata = copy.deepcopy(target["metadata"])
    if board := _BOARDS.get(target["task"]):
        metadata[board] = tuple(map(tuple, metadata[board]))
    return {"answer": target["answer"], "metadata": metadata}
