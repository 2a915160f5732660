r"""Relations such as ``x = 5``: their labels, and the answer that they state."""

import re
from fractions import Fraction
from itertools import takewhile
from typing import Any

import mpmath  # type: ignore[import-untyped]

from esplug_tasks_math import rationals, symbolic, units
from esplug_tasks_math.latex import Tokens, content, spell
from esplug_tasks_math.shapes import Relation

INEQUALITIES = ("<", ">", r"\leq", r"\geq")
SIGNS = frozenset({"=", r"\neq", r"\approx", r"\equiv", r"\in", r"\subset", r"\subseteq", *INEQUALITIES})
EQUALITIES = frozenset({"=", r"\approx"})

_NO_LETTERS = frozenset(
    rf"\{name}"
    for name in ("frac", "sqrt", "cdot", "pi", "infty", "binom", "pm", "mp", "ln", "log", "exp", "sin", "cos", "tan")
)
_PARTS = re.compile(r"_(?:\{[^{}]*\}|[0-9]+|.)|\([^()]*\)|'")
_OPERATOR = re.compile(r"[0-9+\-/^!*%|,;:]|\\(?:frac|sqrt|cdot|pi|div|pm|binom|infty|ldots|to|rightarrow|Rightarrow)\b")
_PRODUCT = re.compile(r"(?<![A-Za-z\\])[a-z]{2}(?![A-Za-z])")  # xy is a product, but AB and area are names
_DIGITS_OF_EQUALITY, _HALF = 60, Fraction(1, 2)


def has_letters(tokens: Tokens) -> bool:
    """Return whether the tokens contain a variable or a word."""
    return any((token[-1:].isalpha() and token not in _NO_LETTERS) or content(token) for token in tokens)


def is_name(tokens: Tokens) -> bool:
    r"""Return whether tokens are a name: ``x``, ``m_{\max}``, ``f(2)``, ``\angle ABC``, ``SRAC``, ``(x,y)``."""
    text = spell(tokens)
    if re.fullmatch(r"\([A-Za-z](?:,[A-Za-z])+\)", text):
        return True
    plain = _PARTS.sub("", text)
    return bool(plain) and has_letters(tokens) and not _OPERATOR.search(plain) and not _PRODUCT.search(plain)


def label(relation: Relation) -> Tokens:
    """Return the name that a relation gives a value to, or ``()``."""
    sides = _oriented(relation)[0]
    return sides[0] if is_name(sides[0]) else ()


def stated(relation: Relation) -> Tokens | None:
    r"""Return the side of an equation that is an answer, or ``None`` if the equation states none.

    Of ``x = 2 + 3 = 5`` and ``5 = x`` it is 5, of ``2 + 3 = 5`` the last side, and of ``\sqrt{2} \approx 1.41`` the
    exact one. Sides after names must be equal, and rounded sides must be rounded rightly. ``x + y = 5``,
    ``2x + 3 = 13`` and ``x = x`` state none.
    """
    if not set(relation.signs) <= EQUALITIES:
        return None
    sides, signs = _oriented(relation)
    labels = list(takewhile(is_name, sides[:-1]))
    rest, between = sides[len(labels) :], signs[len(labels) :]
    if any(_contains(side, name) for side in rest for name in labels):
        return None
    if (len(rest) > 1 or not labels) and not _consistent(rest, between, labelled=bool(labels)):
        return None
    return rest[between.index(r"\approx")] if r"\approx" in between else rest[-1]


def _oriented(relation: Relation) -> tuple[tuple[Tokens, ...], tuple[str, ...]]:
    sides, signs = relation.sides, relation.signs
    if is_name(sides[-1]) and not is_name(sides[0]) and set(signs) <= EQUALITIES:
        return sides[::-1], signs[::-1]
    return sides, signs


def _contains(side: Tokens, name: Tokens) -> bool:
    return any(side[start : start + len(name)] == name for start in range(len(side) - len(name) + 1))


def _consistent(sides: tuple[Tokens, ...], signs: tuple[str, ...], *, labelled: bool) -> bool:
    """Return whether all sides that are numbers are equal. Without a label, all sides must be numbers."""
    sides = tuple(units.split(side)[0] for side in sides)
    numbers = [symbolic.constant(side) for side in sides]
    if None in numbers and not (labelled and numbers[-1] is not None):
        return all(symbolic.same_value(side, sides[-1]) for side in sides[:-1])
    exact = sides[: signs.index(r"\approx") + 1] if r"\approx" in signs else sides
    reference = symbolic.constant(exact[-1])
    return reference is None or all(
        number is None
        or _near(number, reference, _HALF if side in exact else rationals.precision(side) or _HALF, side in exact)
        for number, side in zip(numbers, sides, strict=True)
    )


def _near(x: Any, y: Any, half: Fraction, exact: bool) -> bool:
    """Return whether a number equals another, or is that number rounded to half a unit in its last digit."""
    with mpmath.workdps(2 * _DIGITS_OF_EQUALITY):
        if exact:
            return bool(abs(x - y) <= mpmath.mpf(10) ** -_DIGITS_OF_EQUALITY * max(abs(x), abs(y)))
        return bool(abs(x - y) <= mpmath.mpf(half.numerator) / half.denominator)
