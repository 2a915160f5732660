r"""Finder of the answer in a model's output: between ``<answer>`` tags, in ``\boxed{}``, or in the last line."""

from typing import Any

PLACES = ("tags", "boxed", "last-line")

_OPEN, _CLOSE, _BOX = "<answer>", "</answer>", "\\boxed{"


def check(task: str, right: Any, place: str) -> None:
    """Raise ``ValueError`` if the right answer to a row of this task has several lines, but only one is read."""
    if place == "last-line" and isinstance(right, str) and "\n" in right.strip():
        raise ValueError(f"answers of {task} have several lines; choose answer_from=tags or answer_from=boxed")


def find(output: str, place: str) -> str | None:
    r"""Return the stripped answer, or ``None`` if there is none.

    Args:
        output: the model's output.
        place: ``tags`` for the last ``<answer>...</answer>``, where the end of the text may close it, because the run
            stops there; ``boxed`` for the last ``\boxed{...}``; ``last-line`` for the last line that is not blank.
    """
    found = {"tags": _tagged, "boxed": _boxed, "last-line": _last_line}[place](output)
    return None if found is None or not found.strip() else found.strip()


def _tagged(output: str) -> str | None:
    _, opened, rest = output.rpartition(_OPEN)
    return rest.partition(_CLOSE)[0] if opened else None


def _boxed(output: str) -> str | None:
    _, opened, rest = output.rpartition(_BOX)
    depth = 1 if opened else 0
    for position, character in enumerate(rest if opened else ""):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[:position]
    return None


def _last_line(output: str) -> str | None:
    return next((line for line in reversed(output.splitlines()) if line.strip()), None)
