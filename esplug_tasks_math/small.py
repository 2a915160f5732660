r"""Generator of a small set of school mathematics, the same on every machine, without a download.

``esplug data build math_small`` saves it. It has four kinds of problem, from sums that a model of 135 million
parameters can solve to word problems that it mostly cannot. Answers are exact: whole numbers, or fractions as
``\frac{a}{b}`` in lowest terms.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from random import Random
from typing import Literal, overload

from esplug import hookimpl
from esplug_tasks_math.structures import KINDS, Structure

Row = dict[str, str]
#: Rows of each kind in each split.
ROWS = {"train": 250, "eval": 75}
_MOST_REPEATS = 100_000  # problems in a row that were drawn before, after which there are no others


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem.

    Attributes:
        structure: name of its structure.
        numbers: numbers in the text, from left to right.
        key: identity of the problem regardless of its wording: structure and numbers.
        text: the question.
        answer: the exact answer.
    """

    structure: str
    numbers: tuple[int, ...]
    key: tuple[str, tuple[int, ...]]
    text: str
    answer: Fraction

    @property
    def split(self) -> str:
        """``train`` or ``eval``, by a hash of the key, so that splits never overlap."""
        return ("train", "eval")[zlib.crc32(repr(self.key).encode()) % 2]


_NAMES = (
    "Amara Bruno Chiara Dmitri Elif Farid Greta Hana Ivo Jamila Kofi Lena Mateo Nadia Omar Priya "
    "Quentin Rosa Samir Tala Ulrich Vera Wen Ximena Yusuf Zofia"
)
_THINGS = (
    "apples marbles stamps pencils shells buttons stickers plums beads cards candles lemons coins postcards "
    "walnuts ribbons"
)
_PLACES = "museum market library zoo station harbor school bakery theater village farm stadium"


def generate(kind: str, split: str, count: int | None = None) -> list[Problem]:
    """Return the problems of one kind in the split ``train`` or ``eval``, the same on every machine.

    Args:
        kind: of ``KINDS``.
        split: of ``ROWS``.
        count: number of problems; ``ROWS`` has the default. A longer list starts with the shorter one.

    Raises:
        ValueError: the kind or split does not exist, or has fewer problems.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if split not in ROWS:
        raise ValueError(f"split must be train or eval, not {split!r}")
    wanted = ROWS[split] if count is None else count
    found = list(islice((problem for problem in _distinct(kind) if problem.split == split), wanted))
    if len(found) < wanted:
        raise ValueError(f"{kind} has only {len(found)} problems in the split {split}, not {wanted}")
    return found


@overload
def rows(split: Literal["train"]) -> list[Row]: ...
@overload
def rows(split: Literal["eval"]) -> dict[str, list[Row]]: ...
@overload
def rows(split: str) -> list[Row] | dict[str, list[Row]]: ...
def rows(split: str) -> list[Row] | dict[str, list[Row]]:
    """Return rows with the columns ``problem``, ``answer``, ``kind`` and ``exact_form``.

    Args:
        split: ``"train"`` for 1,000 rows with alternating kinds; ``"eval"`` for a mapping from kind to 75 rows.

    Raises:
        ValueError: the split does not exist.
    """
    by_kind = {kind: [_row(kind, problem) for problem in generate(kind, split)] for kind in KINDS}
    if split == "eval":
        return by_kind
    return [row for turn in zip(*by_kind.values(), strict=True) for row in turn]


@hookimpl
def build() -> dict[str, dict[str, list[Row]]]:
    """Make the data set. Fetches nothing."""
    return {"train": {"train": rows("train")}, "eval": rows("eval")}


def _row(kind: str, problem: Problem) -> Row:
    return {"problem": problem.text, "answer": written(problem.answer), "kind": kind, "exact_form": "strict"}


def written(value: Fraction) -> str:
    r"""Format a number as an answer: ``7``, ``-7``, ``\frac{7}{3}`` or ``-\frac{7}{3}``."""
    if value.denominator == 1:
        return str(value.numerator)
    sign = "-" if value < 0 else ""
    return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _distinct(kind: str) -> Iterator[Problem]:
    rng = Random(zlib.crc32(kind.encode()))
    seen = set()
    repeats = 0
    while repeats < _MOST_REPEATS:
        problem = _draw(rng, rng.choice(KINDS[kind]))
        repeats += 1
        if problem.key not in seen:
            seen.add(problem.key)
            repeats = 0
            yield problem


def _draw(rng: Random, structure: Structure) -> Problem:
    """Draw numbers until they make a suitable problem, and insert them into a random wording."""
    while not structure.keep(*(drawn := tuple(rng.randrange(low, high + 1) for low, high in structure.ranges))):
        pass
    wording, words = rng.choice(structure.wordings), _words(rng)
    key = structure.name, tuple(sorted(drawn)) if structure.symmetric else drawn
    return Problem(structure.name, drawn, key, wording.format(*drawn, **words), Fraction(structure.solve(*drawn)))


def _words(rng: Random) -> dict[str, str]:
    name, other = rng.sample(_NAMES.split(), 2)
    things, place = rng.choice(_THINGS.split()), rng.choice(_PLACES.split())
    return {"name": name, "other": other, "things": things, "place": place, "x": rng.choice("nptwxyz")}
