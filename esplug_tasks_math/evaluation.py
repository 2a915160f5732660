"""Evaluator of sympy expressions with mpmath, to as many digits as needed within a limit."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mpmath  # type: ignore[import-untyped]
import sympy  # type: ignore[import-untyped]

from esplug_tasks_math.latex import Unreadable

#: Limits: bits of a number, largest integer for a factorial, and largest other number for a factorial.
MOST_BITS, LARGEST_FACTORIAL, LARGEST_GAMMA = 100_000, 10_000, 100
#: Minimum precision in bits, and the number of them that rounding errors may affect.
BITS, SLACK = 400, 100
#: Attempts with increasing precision. A value that still grows is a pole, hidden by rounding noise.
ROUNDS = 3


class Undefined(ArithmeticError):  # noqa: N818 - it describes the value
    """An expression has no value at a point."""


class Unknown(TypeError):  # noqa: N818
    """A function that this module does not evaluate."""


def values(expressions: list[Any], point: "Point") -> tuple[list[Any], int]:
    """Evaluate with enough bits to resolve a difference of one in the largest and smallest intermediate numbers.

    Returns:
        The values, and the precision in bits at which to compare them.

    Raises:
        Undefined: an expression has no value at this point.
        Unknown: an expression contains a function that this module does not evaluate.
        Unreadable: a number would be too large, or there is a pole.
    """
    bits = BITS
    for _ in range(ROUNDS):
        evaluation = _Evaluation(point)
        with mpmath.workprec(bits):
            found = [evaluation.value(expression) for expression in expressions]
        if evaluation.bits + BITS - SLACK <= bits:
            return found, bits
        bits = evaluation.bits + BITS
    raise Unreadable("no value")


def equal(x: Any, y: Any, bits: int) -> bool:
    """Return whether two values are equal up to rounding."""
    if mpmath.isinf(x) or mpmath.isinf(y):
        return bool(x == y)
    with mpmath.workprec(bits):
        return bool(abs(x - y) <= mpmath.mpf(2) ** (SLACK - bits) * max(abs(x), abs(y), 1))


@dataclass(frozen=True, slots=True)
class Point:
    """Values of the variables. A name has the same value in every expression and process.

    Attributes:
        number: number of the point.
        kind: kind of values: ``positive``, ``negative`` or ``integer`` (2 to 12).
        fixed: values of individual variables.
    """

    number: int
    kind: str = "positive"
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        if name in self.fixed:
            return self.fixed[name]
        if name == "i":
            return mpmath.mpc(0, 1)
        chance = zlib.crc32(f"{self.number} {name}".encode())
        if self.kind == "integer":
            return mpmath.mpf(2 + chance % 11)
        return (-1 if self.kind == "negative" else 1) * mpmath.mpf(1 + chance % 1_000_003) / 150_000


_FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    sympy.sin: mpmath.sin,
    sympy.cos: mpmath.cos,
    sympy.tan: mpmath.tan,
    sympy.cot: mpmath.cot,
    sympy.sec: mpmath.sec,
    sympy.csc: mpmath.csc,
    sympy.asin: mpmath.asin,
    sympy.acos: mpmath.acos,
    sympy.atan: mpmath.atan,
    sympy.sinh: mpmath.sinh,
    sympy.cosh: mpmath.cosh,
    sympy.tanh: mpmath.tanh,
    sympy.Abs: abs,
    sympy.Max: max,
    sympy.Min: min,
}


class _Evaluation:
    """Evaluation at one point, which records the bits needed for the largest and smallest intermediate numbers."""

    def __init__(self, point: Point) -> None:
        self._point = point
        self.bits = 0

    def value(self, node: Any) -> Any:
        try:
            value = self._value(node)
        except Unreadable:
            raise
        except (ZeroDivisionError, ValueError, OverflowError) as error:
            raise Undefined from error
        if mpmath.isnan(value):
            raise Undefined
        self._count(value)
        return value

    def _value(self, node: Any) -> Any:
        if node.is_Rational:
            self._limited(max(node.p.bit_length(), node.q.bit_length()))
            return self._small(mpmath.mpf(node.p) / node.q)
        if node.is_Symbol:
            return self._point[node.name]
        if node in (sympy.pi, sympy.E):
            return +(mpmath.pi if node is sympy.pi else mpmath.e)
        if node in (sympy.oo, -sympy.oo):
            return mpmath.inf if node is sympy.oo else -mpmath.inf
        arguments = [self.value(argument) for argument in node.args]
        if node.is_Add:
            return mpmath.fsum(arguments)
        if node.is_Mul:
            return mpmath.fprod(arguments)
        if node.is_Pow:
            return self._power(*arguments)
        return self._function(node.func, arguments)

    def _power(self, base: Any, exponent: Any) -> Any:
        if base and not mpmath.isinf(base) and not mpmath.isinf(exponent):
            self._limited(abs(exponent) * (abs(mpmath.mag(base)) + 1))
            if mpmath.mag(base) > SLACK - mpmath.mp.prec:  # otherwise the base may be rounding noise around zero
                return self._small(mpmath.power(base, exponent))
        return mpmath.power(base, exponent)

    def _function(self, function: Any, arguments: list[Any]) -> Any:
        if function is sympy.exp:
            self._limited(2 * abs(arguments[0]))
            return self._small(mpmath.exp(arguments[0]))
        if function in _FUNCTIONS:
            return _FUNCTIONS[function](*arguments)
        if function is sympy.log:
            return mpmath.log(*arguments)
        if function in (sympy.floor, sympy.ceiling):
            return _whole(arguments[0], mpmath.floor if function is sympy.floor else mpmath.ceil)
        if function is sympy.factorial:
            whole = mpmath.isint(arguments[0])
            if abs(arguments[0]) > (LARGEST_FACTORIAL if whole else LARGEST_GAMMA):
                raise Unreadable("too large")
            return mpmath.factorial(arguments[0])
        raise Unknown(function)

    def _small(self, value: Any) -> Any:
        """Count the fractional bits of a number that is small in itself and not because of rounding."""
        if value:
            self._count(1 / value)
        return value

    def _count(self, value: Any) -> None:
        if value and not mpmath.isinf(value):
            self.bits = max(self.bits, self._limited(mpmath.mag(value)))

    def _limited(self, bits: Any) -> int:
        if not bits < MOST_BITS:
            raise Unreadable("too large")
        return int(bits)


def _whole(number: Any, step: Callable[[Any], Any]) -> Any:
    """Round down or up, but to the nearest whole number if only the last digits differ."""
    nearest = mpmath.nint(number)
    return nearest if abs(number - nearest) < mpmath.mpf(2) ** (SLACK - mpmath.mp.prec) else step(number)
