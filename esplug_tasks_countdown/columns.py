"""Parsers of the columns ``numbers``, ``target`` and ``context``, in any of the forms found in files."""

import ast
import re
from fractions import Fraction
from typing import Any

_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?|[-+]?[0-9]+/[0-9]+")


def target(value: Any) -> Fraction:
    """Return the exact target from a number, or from text such as ``24``, ``2.5`` or ``7/3``.

    Raises:
        ValueError: the value is neither.
    """
    try:
        return _fraction(value)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"column 'target': {value!r} is not a number") from None


def numbers(value: Any) -> list[int]:
    """Return a puzzle's numbers from a list, or from its text in JSON or Python.

    Raises:
        ValueError: the value is not a non-empty list of non-negative whole numbers.
    """
    try:
        # literal_eval also reads JSON lists of numbers, and executes nothing.
        found = [_fraction(item) for item in (ast.literal_eval(value) if isinstance(value, str) else value)]
        if found and all(number >= 0 and number.denominator == 1 for number in found):
            return [int(number) for number in found]
    except (ValueError, TypeError, ZeroDivisionError, SyntaxError, RecursionError, MemoryError):
        pass
    raise ValueError(f"column 'numbers': {value!r} is not a list of whole numbers")


def text(value: Any) -> str:
    """Return a prompt.

    Raises:
        ValueError: the value is not text.
    """
    if not isinstance(value, str):
        raise ValueError(f"column 'context': {value!r} is not text")
    return value


def _fraction(value: Any) -> Fraction:
    text = str(value).strip()
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return Fraction(text)
