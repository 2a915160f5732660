r"""Whether two expressions have the same value: parsed by latex2sympy, evaluated by mpmath to many digits.

Sympy is imported here and in ``evaluation``. Expressions reach the parser as LaTeX rebuilt from known tokens,
with every name that is more than a letter (``v_{0}``, ``\dot{x}``, ``f(x)``, ``\frac{dM}{dt}``) replaced by a
symbol. Expressions are never simplified: those that agree to a hundred digits wherever they are evaluated are
the same. Work is bounded, because numbers too large are given up before they are computed.
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

#: Points at which expressions with variables are compared, and how many parsed expressions are remembered.
POINTS, REMEMBERED = 6, 1024

_CONFIG = ConversionConfig(interpret_simple_eq_as_assignment=False, lowercase_symbols=False)
_NORMALIZATION = NormalizationConfig()
_STEPWISE, _INDICES = (sympy.floor, sympy.ceiling, sympy.factorial), frozenset("ijkmnpqr")
_IMAGINARY = sympy.Symbol("i", real=False)

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off; ours are not


class _Converter(_Latex2Sympy):  # type: ignore[misc]
    """latex2sympy, but for its way of reading numbers: ``sympy.Number(text)`` is an ``eval``."""

    def parse_number(self, text: str) -> Any:
        return sympy.Integer(int(text))


def same_value(given: Tokens, gold: Tokens) -> bool:
    """Whether two expressions are equal for all positive values of their variables.

    Variables named like indices in floors and factorials, and those of powers of -1, are meant to be integers: there
    it suffices that the expressions agree on positive integers. Absolute values are compared for negative variables
    as well.

    Raises:
        Unreadable: ``given`` cannot be parsed or is too large. Where ``gold`` cannot, the answer is ``False``.
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
    """Whether two equations, each the difference of its sides, say the same.

    They do if one is a constant multiple of the other, or if they have the same variables and the same solution
    for each variable in which both are linear.

    Raises:
        Unreadable: ``given`` cannot be parsed or is too large.
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
    except (Exception, RecursionError) as error:  # the parser raises whatever its grammar meets
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
    """Whether the variables are meant to be integers: named like indices in stepwise functions, or powers of -1."""
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
    """Return where a linear expression is zero, ``None`` where it is not linear in this variable."""
    try:
        found = [values([expression], Point(number, fixed={name: mpmath.mpf(at)})) for at in (1, 2, 3)]
    except Undefined:
        return None
    (one,), (two,), (three,) = (value for value, _ in found)
    bits = max(bits for _, bits in found)
    with mpmath.workprec(bits):
        slope = two - one
        return 1 - one / slope if slope and equal(slope, three - two, bits) else None
