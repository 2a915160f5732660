"""Comparison of outputs and return values with the expected ones, outside the sandbox."""

import math
import re
from collections.abc import Mapping
from typing import Any

TOLERANCE = 1e-6  # relative and absolute, for numbers with a decimal point or an exponent

_NUMBER = re.compile(r"[+-]?(?:\d{1,300}(?:\.\d{0,300})?|\.\d{1,300})(?:[eE][+-]?\d{1,3})?", re.ASCII)


def same_output(given: str, expected: str) -> bool:
    """Return whether printed texts are equal: line by line, word by word, numbers by value.

    White space between words and blank lines at the end do not count. ``1.0`` equals ``1``; numbers of which one has a
    decimal point or an exponent may differ by 1e-6, relatively or absolutely.
    """
    lines, wanted = ([line.split() for line in text.rstrip().splitlines()] for text in (given, expected))
    return len(lines) == len(wanted) and all(
        len(line) == len(words) and all(map(_same_word, line, words)) for line, words in zip(lines, wanted, strict=True)
    )


def _same_word(given: str, expected: str) -> bool:
    if given == expected:
        return True
    if not (_NUMBER.fullmatch(given) and _NUMBER.fullmatch(expected)):
        return False
    if (given.lstrip("+-") + expected.lstrip("+-")).isdigit():
        return given.lstrip("+") == expected.lstrip("+")
    return math.isclose(float(given), float(expected), rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def same_value(given: Any, expected: Any) -> bool:
    """Return whether plain data are equal: floats within 1e-6, tuples like lists, keys of dictionaries as text.

    The last two are because the expected value comes from JSON, which has neither tuples nor other keys.
    """
    if isinstance(given, list | tuple) and isinstance(expected, list | tuple):
        return len(given) == len(expected) and all(map(same_value, given, expected))
    if isinstance(given, Mapping) and isinstance(expected, Mapping):
        left, right = ({str(key): value for key, value in each.items()} for each in (given, expected))
        return left.keys() == right.keys() and all(same_value(left[key], right[key]) for key in right)
    if isinstance(given, float) or isinstance(expected, float):
        return _is_close(given, expected)
    return bool(given == expected)


def _is_close(given: Any, expected: Any) -> bool:
    if not (isinstance(given, int | float) and isinstance(expected, int | float)):
        return False
    try:
        return given == expected or math.isclose(given, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except OverflowError:  # a whole number that is too large for a float
        return False
