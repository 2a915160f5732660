"""Generator of a small set of very short programs, the same on every machine, without a download.

``esplug data build code_small`` saves it. A problem asks for a function, or for a program that reads and prints; every
row has its tests and a solution that passes them. It is easy enough for a model of 135 million parameters.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any, Literal, overload

from esplug import hookimpl
from esplug_tasks_code.structures import STRUCTURES, Structure

Row = dict[str, str]
KINDS = ("function", "program")
#: Rows of each kind in each split.
ROWS = {"train": 200, "eval": 100}
TESTS = 5  # of each problem

_ARGUMENTS = {"x": "a whole number x", "s": "a line s", "xs": "whole numbers xs on one line"}
_READ = {"x": "int(input())", "s": "input()", "xs": "list(map(int, input().split()))"}


@dataclass(frozen=True, slots=True)
class Problem:
    """A structure with its constant, and arguments to test it with."""

    structure: Structure
    constant: Any
    wording: str
    arguments: tuple[Any, ...]

    @property
    def key(self) -> tuple[str, Any]:
        """Identity of a problem regardless of its wording and kind."""
        return self.structure.name, self.constant

    @property
    def split(self) -> str:
        """``train`` or ``eval``, by a hash of the key, so that splits never overlap."""
        return ("train", "train", "eval")[zlib.crc32(repr(self.key).encode()) % 3]

    def row(self, kind: str) -> Row:
        """Return the problem as a row of one kind."""
        name = self.structure.argument
        what, expression = (
            text.replace("{a}", str(self.constant)).replace("{w}", str(self.constant))
            for text in (self.wording, self.structure.solution)
        )
        results = [self.structure.solve(argument, self.constant) for argument in self.arguments]
        if kind == "function":
            problem = f"Write a function solve({name}) that returns {what}."
            solution = f"def solve({name}):\n    return {expression}\n"
            tests = {"fn_name": "solve", "inputs": [[each] for each in self.arguments], "outputs": results}
        else:
            problem = f"Write a program that reads {_ARGUMENTS[name]} and prints {what}."
            solution = f"{name} = {_READ[name]}\nprint({expression})\n"
            inputs = [_line(argument) for argument in self.arguments]
            tests = {"inputs": inputs, "outputs": [f"{result}\n" for result in results]}
        return {"problem": problem, "tests": json.dumps(tests), "solution": solution, "kind": kind}


def generate(kind: str, split: str) -> list[Problem]:
    """Return the problems of one kind in the split ``train`` or ``eval``, the same on every machine.

    Raises:
        ValueError: the kind or split does not exist.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if split not in ROWS:
        raise ValueError(f"split must be train or eval, not {split!r}")
    return list(islice((problem for problem in _distinct(kind) if problem.split == split), ROWS[split]))


@overload
def rows(split: Literal["train"]) -> list[Row]: ...
@overload
def rows(split: Literal["eval"]) -> dict[str, list[Row]]: ...
@overload
def rows(split: str) -> list[Row] | dict[str, list[Row]]: ...
def rows(split: str) -> list[Row] | dict[str, list[Row]]:
    """Return rows with the columns ``problem``, ``tests``, ``solution`` and ``kind``.

    Args:
        split: ``"train"`` for 400 rows with alternating kinds; ``"eval"`` for a mapping from kind to 100 rows.

    Raises:
        ValueError: the split does not exist.
    """
    by_kind = {kind: [problem.row(kind) for problem in generate(kind, split)] for kind in KINDS}
    if split == "eval":
        return by_kind
    return [row for turn in zip(*by_kind.values(), strict=True) for row in turn]


@hookimpl
def build() -> dict[str, dict[str, list[Row]]]:
    """Make the data set. Fetches nothing."""
    return {"train": {"train": rows("train")}, "eval": rows("eval")}


def _line(argument: Any) -> str:
    return f"{' '.join(map(str, argument)) if isinstance(argument, list) else argument}\n"


def _distinct(kind: str) -> Iterator[Problem]:
    rng = Random(zlib.crc32(kind.encode()))
    seen = set()
    while True:
        problem = _draw(rng, rng.choice(STRUCTURES))
        if problem.key not in seen:
            seen.add(problem.key)
            yield problem


def _draw(rng: Random, structure: Structure) -> Problem:
    """Draw a constant, a wording, and distinct arguments whose results are not all the same."""
    constant, wording = rng.choice(structure.constants), rng.choice(structure.wordings)
    while True:
        arguments = tuple(structure.draw(rng, constant) for _ in range(TESTS))
        results = {repr(structure.solve(argument, constant)) for argument in arguments}
        if len(results) > 1 and len(set(map(repr, arguments))) == TESTS:
            return Problem(structure, constant, wording, arguments)
