r"""Equality of expressions by value: parsed by latex2sympy and evaluated by mpmath to many digits.

Only this module and ``evaluation`` import sympy. The parser gets LaTeX rebuilt from known tokens, with every name
longer than a letter (``v_{0}``, ``\dot{x}``, ``f(x)``, ``\frac{dM}{dt}``) replaced by a symbol. Expressions are never
simplified: they are equal if they agree to a hundred digits at every point. Work is bounded: numbers that are too large
are rejected before they are computed.
"""

import logging
from functools import lru_cache
from typing import Any

import mpmath  # type: ignore[import-untyped]
import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended.latex2sympy2 import (  # type: ignore[import-untyped]
    ConversionConfig,
    NormalizationConfig,
    _Latex2Sympy,
    normalize_latex,
)
from math_verify import verify  # type: ignore[import-untyped]
from sympy.core.random import seed  # type: ignore[import-untyped]

from esplug_tasks_math.evaluation import Point, Undefined, Unknown, equal, values
from esplug_tasks_math.latex import Tokens, Unreadable
from esplug_tasks_math.names import parser_latex

#: Points at which expressions with variables are compared, and size of the cache of parsed expressions.
POINTS, REMEMBERED = 6, 1024

_CONFIG = ConversionConfig(interpret_simple_eq_as_assignment=False, lowercase_symbols=False)
_NORMALIZATION = NormalizationConfig()
_STEPWISE, _INDICES = (sympy.floor, sympy.ceiling, sympy.factorial), frozenset("ijkmnpqr")
_IMAGINARY = sympy.Symbol("i", real=False)

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off; esplug has its own


class _Converter(_Latex2Sympy):  # type: ignore[misc]
    """latex2sympy with a safe parser of numbers: ``sympy.Number(text)`` is an ``eval``."""

    def parse_number(self, text: str) -> Any:
        return sympy.Integer(int(text))


def same_value(given: Tokens, gold: Tokens) -> bool:
    """Return whether two expressions are equal for positive values of their variables.

    Variables named like indices in floors and factorials, and variables in powers of a negative number, are integers:
    it is enough that the expressions agree on positive integers. Expressions with absolute values are also compared for
    negative values. The result is ``False`` if ``gold`` cannot be parsed.

    Raises:
        Unreadable: ``given`` cannot be parsed, or is too large.
    """
    left, right = _both(given, gold)
    if right is None:
        return False
    try:
        return _agree(left, right)
    except Unknown:
        seed(0)  # sympy probes expressions at random points
        return bool(verify([right], [left], timeout_seconds=None))


def same_zeros(given: Tokens, gold: Tokens) -> bool:
    """Return whether two equations, each given as the difference of its sides, are equivalent.

    They are if one is a constant multiple of the other, or if they have the same variables and the same solution for
    each variable in which both are linear.

    Raises:
        Unreadable: ``given`` cannot be parsed, or is too large.
    """
    left, right = _both(given, gold)
    if right is None:
        return False
    try:
        return _is_multiple(left, right) or _same_solutions(left, right)
    except (Unknown, Undefined):
        return False


@lru_cache(REMEMBERED)
def _parsed(answer: Tokens) -> Any:
    try:
        parsed = _Converter(is_real=False, config=_CONFIG).parse(normalize_latex(parser_latex(answer), _NORMALIZATION))
    except Unreadable:
        raise
    except (Exception, RecursionError) as error:  # the parser raises errors of many types
        raise Unreadable("no expression") from error
    if not isinstance(parsed, sympy.Expr):
        raise Unreadable("no expression")
    return parsed


def _both(given: Tokens, gold: Tokens) -> tuple[Any, Any]:
    left = _parsed(given)
    try:
        return left, _parsed(gold)
    except Unreadable:
        return left, None


def _agree(left: Any, right: Any) -> bool:
    if not (left.free_symbols | right.free_symbols) - {_IMAGINARY}:
        return _agree_at(left, right, "positive", 1)
    if left.has(sympy.Abs) or right.has(sympy.Abs):
        return _agree_at(left, right, "positive", POINTS) and _agree_at(left, right, "negative", POINTS)
    if _agree_at(left, right, "positive", POINTS):
        return True
    return (_is_for_integers(left) or _is_for_integers(right)) and _agree_at(left, right, "integer", 2 * POINTS)


def _is_for_integers(expression: Any) -> bool:
    """Return whether variables are integers: indices in stepwise functions, or exponents of a negative number."""
    names = {variable.name for variable in expression.free_symbols}
    return (expression.has(*_STEPWISE) and names <= _INDICES) or any(
        power.base.is_negative and power.exp.free_symbols for power in expression.atoms(sympy.Pow)
    )


def _agree_at(left: Any, right: Any, kind: str, points: int) -> bool:
    seen = 0
    for number in range(points):
        try:
            (x, y), bits = values([left, right], Point(number, kind))
        except Undefined:
            continue
        seen += 1
        if not equal(x, y, bits):
            return False
    return seen > 0 and seen >= points // 2


def _is_multiple(left: Any, right: Any) -> bool:
    factors = []
    for number in range(POINTS):
        (x, y), bits = values([left, right], Point(number))
        if not x or not y:
            return False
        with mpmath.workprec(bits):
            factors.append(x / y)
        if not equal(factors[0], factors[-1], bits):
            return False
    return True


def _same_solutions(left: Any, right: Any) -> bool:
    variables = left.free_symbols - {_IMAGINARY}
    if variables != right.free_symbols - {_IMAGINARY}:
        return False
    compared = 0
    for name in sorted(variable.name for variable in variables):
        for number in range(POINTS):
            x, y = _solution(left, name, number), _solution(right, name, number)
            if x is None or y is None:
                break
            if not equal(x, y, 300):
                return False
            compared += 1
    return compared > 0


def _solution(expression: Any, name: str, number: int) -> Any:
    """Return the zero of an expression, or ``None`` if it is not linear in this variable."""
    try:
        found = [values([expression], Point(number, fixed={name: mpmath.mpf(at)})) for at in (1, 2, 3)]
    except Undefined:
        return None
    (one,), (two,), (three,) = (value for value, _ in found)
    bits = max(bits for _, bits in found)
    with mpmath.workprec(bits):
        slope = two - one
        return 1 - one / slope if slope and equal(slope, three - two, bits) else None
