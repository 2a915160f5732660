"""Generator of deterministic Countdown puzzles. ``esplug data build countdown`` saves the standard level."""

import functools
import operator
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from esplug import hookimpl
from esplug_tasks_countdown import prompts


@dataclass(frozen=True, slots=True)
class Puzzle:
    """Numbers to combine, the value to reach, and one way to reach it."""

    numbers: tuple[int, ...]
    target: int
    solution: str

    @property
    def key(self) -> tuple[tuple[int, ...], int]:
        """Identity of a puzzle: its numbers in any order, and its target."""
        return tuple(sorted(self.numbers)), self.target

    @property
    def split(self) -> str:
        """``train`` or ``eval``, by a hash of the key, so that splits never overlap."""
        return ("train", "eval")[zlib.crc32(repr(self.key).encode()) % 2]


@dataclass(frozen=True, slots=True)
class Level:
    """A level: how to draw its puzzles, its seed, and the number of rows per split."""

    draw: Callable[[Random], Puzzle | None]
    seed: int
    rows: dict[str, int]


_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


def _draw_standard(rng: Random) -> Puzzle | None:
    """Join 3 or 4 numbers, two random terms at a time. Return ``None`` if the target is not a number from 1 to 99."""
    numbers = tuple(rng.randrange(1, 100) for _ in range(rng.randrange(3, 5)))
    terms = [(number, str(number), 3) for number in numbers]  # value, text, binding strength
    while len(terms) > 1:
        left = terms.pop(rng.randrange(len(terms)))
        right = terms.pop(rng.randrange(len(terms)))
        joined = _join(left, rng.choice("+-**//"), right)  # draw * and / more often, because they rarely fit
        if joined is None:
            return None
        terms.append(joined)
    target, solution, _ = terms[0]
    return Puzzle(numbers, target, solution) if 1 <= target <= 99 else None


def _join(left: tuple[int, str, int], sign: str, right: tuple[int, str, int]) -> tuple[int, str, int] | None:
    """Join two terms, with parentheses if needed. Return ``None`` if the value is not a whole number."""
    (a, a_text, a_strength), (b, b_text, b_strength) = left, right
    if sign == "/" and (b == 0 or a % b):
        return None
    strength = 1 if sign in "+-" else 2
    a_text = f"({a_text})" if a_strength < strength else a_text
    b_text = f"({b_text})" if b_strength <= strength else b_text
    return _OPERATIONS[sign](a, b), f"{a_text} {sign} {b_text}", strength


def _draw_easy(rng: Random) -> Puzzle | None:
    """Add and subtract three small numbers in the given order. Return ``None`` if the result is negative."""
    a, b, c = (rng.randrange(1, 31) for _ in range(3))
    first, second = rng.choice("+-"), rng.choice("+-")
    target = a + (b if first == "+" else -b) + (c if second == "+" else -c)
    return Puzzle((a, b, c), target, f"{a} {first} {b} {second} {c}") if target >= 0 else None


LEVELS = {
    "standard": Level(_draw_standard, seed=1972, rows={"train": 200, "eval": 2000}),
    "easy": Level(_draw_easy, seed=1982, rows={"train": 5000, "eval": 500}),
}


@functools.cache
def generate(level: str, split: str) -> tuple[Puzzle, ...]:
    """Return the puzzles of a level's ``train`` or ``eval`` split, the same on every machine.

    Raises:
        ValueError: the level does not exist.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level!r}")
    fresh = (puzzle for puzzle in _distinct(LEVELS[level]) if puzzle.split == split)
    return tuple(islice(fresh, LEVELS[level].rows[split]))


def _distinct(level: Level) -> Iterator[Puzzle]:
    rng = Random(level.seed)
    seen = {Puzzle(*example).key for example in prompts.EXAMPLES}
    while True:
        puzzle = level.draw(rng)
        if puzzle and puzzle.key not in seen:
            seen.add(puzzle.key)
            yield puzzle


def rows(level: str, split: str) -> list[dict[str, Any]]:
    """Return a split as rows with the columns ``id``, ``context``, ``numbers``, ``target``, ``solution``."""
    return [
        {
            "id": f"{level}-{split}-{index:04}",
            "context": prompts.zero_shot(puzzle.numbers, puzzle.target),
            "numbers": list(puzzle.numbers),
            "target": puzzle.target,
            "solution": puzzle.solution,
        }
        for index, puzzle in enumerate(generate(level, split))
    ]


@hookimpl
def build() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Make the data set of the standard level. Fetches nothing."""
    return {"train": {"train": rows("standard", "train")}, "eval": {"countdown_eval": rows("standard", "eval")}}
