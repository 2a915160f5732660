"""Expected answers of a saved data set."""

from pathlib import Path

from datasets import load_from_disk
from esplug_tasks_math import grading


def suites(folder: Path) -> dict[str, list[str]]:
    """Return the column ``answer`` of each split, in order, as text."""
    data = load_from_disk(str(folder))
    splits = data if hasattr(data, "values") else {folder.name: data}
    return {name: [str(answer) for answer in rows["answer"]] for name, rows in splits.items()}


def golds_of(folder: Path) -> list[str]:
    """Return the expected answers of all splits, in order."""
    return [answer for answers in suites(folder).values() for answer in answers]


def accepted(gold: str) -> list[str]:
    """Return the texts that an expected answer accepts, without the space around them."""
    return [text.strip() for text in grading.accepted(gold)]


def plain(answer: str) -> str:
    """Return an answer without dollar signs around it."""
    inner = answer.strip(" .")
    return inner[1:-1].strip() if inner.startswith("$") and inner.endswith("$") and inner.count("$") == 2 else answer
