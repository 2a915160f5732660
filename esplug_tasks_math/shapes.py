"""Structures of answers: expressions, lists, tuples, sets, intervals, matrices, relations, ratios and times."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from esplug_tasks_math.latex import Tokens

#: Hours until noon.
NOON = 12


@dataclass(frozen=True, slots=True)
class Expression:
    """An answer without structure: a number, a formula, a word or a quantity."""

    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Items:
    """Several answers: ``1, 2`` (a list, in any order), ``(1,2)`` (a tuple), ``\\{1,2\\}`` (a set)."""

    kind: Literal["list", "tuple", "set"]
    items: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval whose ends may be open or closed. ``(a,b)`` may also mean a point."""

    low: "Answer"
    high: "Answer"
    closed: tuple[bool, bool]


@dataclass(frozen=True, slots=True)
class Union:
    """A union of sets, in any order."""

    parts: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries; a vector is a matrix of one column."""

    rows: tuple[tuple["Answer", ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain ``side sign side ...``, such as ``x = 5`` or ``1 < x \\leq 2``."""

    sides: tuple[Tokens, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Two or more numbers of which only the proportion counts."""

    parts: tuple[Tokens, ...]


@dataclass(frozen=True, slots=True)
class Time:
    """A time of day in minutes. ``half`` is ``am``, ``pm``, or ``""`` if unknown."""

    minutes: int
    half: str

    def same(self, other: "Time") -> bool:
        """Return whether times are the same, if a missing half of the day is that of the other time."""
        if bool(self.half) == bool(other.half):
            return self == other
        named, bare = (self, other) if self.half else (other, self)
        return bare.minutes in (named.minutes, named.minutes % (NOON * 60) + NOON * 60 * (named.half == "pm"))


Answer: TypeAlias = Expression | Items | Interval | Union | Matrix | Relation | Ratio | Time
