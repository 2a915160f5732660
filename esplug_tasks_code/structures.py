"""Structures of the small set's problems: wordings, a solution, and how to draw arguments.

In wordings and solutions, ``{a}`` is the number and ``{w}`` the word or letter that a problem is drawn with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

Draw = Callable[[Random, Any], Any]

WORDS = (
    "cat sun red tree moon fish bird lamp ring star door milk sand king boat frog leaf snow gold wind rain bell ship "
    "hill corn duck ice salt wolf rose"
)
LETTERS = "abcdefghiklmnoprstuwy"


@dataclass(frozen=True, slots=True)
class Structure:
    """A kind of problem.

    Attributes:
        name: identity.
        argument: name of the argument: ``x`` for a whole number, ``s`` for text, ``xs`` for a list of whole numbers.
        constants: what ``{a}`` or ``{w}`` may be.
        wordings: what to compute, as the object of "returns" or "prints".
        solution: the same as a Python expression.
        solve: the same as a function of the argument and the constant.
        draw: draws an argument, given the constant.
    """

    name: str
    argument: str
    constants: tuple[Any, ...]
    wordings: tuple[str, ...]
    solution: str
    solve: Callable[[Any, Any], Any]
    draw: Draw


def _number(rng: Random, _: Any) -> int:
    return rng.randrange(-60, 100)


def _near(rng: Random, constant: int) -> int:
    return constant + rng.randrange(-12, 13)


def _multiple_or_not(rng: Random, constant: int) -> int:
    return constant * rng.randrange(1, 9) + rng.choice([0, 0, 1, 2])


def _numbers(rng: Random, constant: int) -> list[int]:
    return [rng.choice([constant, rng.randrange(-20, 60)]) for _ in range(rng.randrange(1, 8))]


def _many(rng: Random, constant: int) -> list[int]:
    return [rng.randrange(-20, 60) for _ in range(constant + rng.randrange(-1, 5))] or [constant]


def _word(rng: Random, _: Any) -> str:
    return rng.choice(WORDS.split())


def _long(rng: Random, constant: int) -> str:
    return "".join(rng.choices(LETTERS, k=constant + rng.randrange(1, 6)))


def _lettered(rng: Random, letter: str) -> str:
    return "".join(rng.choice([letter, rng.choice(LETTERS)]) for _ in range(rng.randrange(2, 9)))


def _affixed(rng: Random, word: str) -> str:
    other = rng.choice(WORDS.split())
    return rng.choice([word + other, other + word, other, word])


_SMALL, _LARGE, _FEW = tuple(range(2, 10)), tuple(range(11, 50)), tuple(range(2, 9))

STRUCTURES: tuple[Structure, ...] = (
    Structure("plus", "x", _LARGE, ("x plus {a}", "the sum of x and {a}"), "x + {a}", lambda x, a: x + a, _number),
    Structure(
        "minus", "x", _LARGE, ("x minus {a}", "the difference of x and {a}"), "x - {a}", lambda x, a: x - a, _number
    ),
    Structure(
        "times", "x", _LARGE, ("x times {a}", "the product of x and {a}"), "x * {a}", lambda x, a: x * a, _number
    ),
    Structure(
        "square", "x", _LARGE, ("the square of x plus {a}", "x squared, plus {a}"),
        "x * x + {a}", lambda x, a: x * x + a, _number,
    ),
    Structure(
        "remainder", "x", _LARGE, ("the remainder of x divided by {a}", "x modulo {a}"),
        "x % {a}", lambda x, a: x % a, _number,
    ),
    Structure(
        "larger", "x", _LARGE, ("the larger of x and {a}", "the maximum of x and {a}"),
        "max(x, {a})", lambda x, a: max(x, a), _near,
    ),
    Structure(
        "smaller", "x", _LARGE, ("the smaller of x and {a}", "the minimum of x and {a}"),
        "min(x, {a})", lambda x, a: min(x, a), _near,
    ),
    Structure(
        "distance", "x", _LARGE, ("the distance between x and {a}", "the absolute difference of x and {a}"),
        "abs(x - {a})", lambda x, a: abs(x - a), _near,
    ),
    Structure(
        "divisible", "x", _SMALL + _LARGE[:20], ("whether x is divisible by {a}", "whether x is a multiple of {a}"),
        "x % {a} == 0", lambda x, a: x % a == 0, _multiple_or_not,
    ),
    Structure(
        "greater", "x", _LARGE, ("whether x is greater than {a}", "whether x is more than {a}"),
        "x > {a}", lambda x, a: x > a, _near,
    ),
    Structure(
        "append", "s", tuple(WORDS.split()), ('s followed by "{w}"', 's with "{w}" at the end'),
        's + "{w}"', lambda s, w: s + w, _word,
    ),
    Structure(
        "prepend", "s", tuple(WORDS.split()), ('"{w}" followed by s', 's with "{w}" in front of it'),
        '"{w}" + s', lambda s, w: w + s, _word,
    ),
    Structure(
        "repeat", "s", _LARGE[:20], ("s repeated {a} times", "{a} copies of s, one after another"),
        "s * {a}", lambda s, a: s * a, _word,
    ),
    Structure(
        "first", "s", _FEW + _LARGE[:5], ("the first {a} characters of s", "the beginning of s, {a} characters long"),
        "s[:{a}]", lambda s, a: s[:a], _long,
    ),
    Structure(
        "last", "s", _FEW + _LARGE[:5], ("the last {a} characters of s", "the end of s, {a} characters long"),
        "s[-{a}:]", lambda s, a: s[-a:], _long,
    ),
    Structure(
        "count_letter", "s", tuple(LETTERS),
        ('how often "{w}" occurs in s', 'the number of times that s contains "{w}"'),
        's.count("{w}")', lambda s, w: s.count(w), _lettered,
    ),
    Structure(
        "remove_letter", "s", tuple(LETTERS), ('s without the letter "{w}"', 's after every "{w}" is removed'),
        's.replace("{w}", "")', lambda s, w: s.replace(w, ""), _lettered,
    ),
    Structure(
        "starts", "s", tuple(WORDS.split()), ('whether s starts with "{w}"', 'whether s begins with "{w}"'),
        's.startswith("{w}")', lambda s, w: s.startswith(w), _affixed,
    ),
    Structure(
        "ends", "s", tuple(WORDS.split()), ('whether s ends with "{w}"', 'whether the end of s is "{w}"'),
        's.endswith("{w}")', lambda s, w: s.endswith(w), _affixed,
    ),
    Structure(
        "sum_plus", "xs", _LARGE, ("the sum of xs plus {a}", "{a} plus the sum of xs"),
        "sum(xs) + {a}", lambda xs, a: sum(xs) + a, _numbers,
    ),
    Structure(
        "count", "xs", _LARGE, ("how often {a} occurs in xs", "the number of times that xs contains {a}"),
        "xs.count({a})", lambda xs, a: xs.count(a), _numbers,
    ),
    Structure(
        "contains", "xs", _LARGE, ("whether {a} is in xs", "whether xs contains {a}"),
        "{a} in xs", lambda xs, a: a in xs, _numbers,
    ),
    Structure(
        "largest_plus", "xs", _LARGE, ("the largest number in xs plus {a}", "{a} plus the maximum of xs"),
        "max(xs) + {a}", lambda xs, a: max(xs) + a, _numbers,
    ),
    Structure(
        "smallest_times", "xs", _LARGE, ("the smallest number in xs times {a}", "{a} times the minimum of xs"),
        "min(xs) * {a}", lambda xs, a: min(xs) * a, _numbers,
    ),
    Structure(
        "longer", "xs", _FEW, ("whether xs has more than {a} items", "whether the length of xs is greater than {a}"),
        "len(xs) > {a}", lambda xs, a: len(xs) > a, _many,
    ),
)  # fmt: skip
