"""Evaluator of expressions with mpmath, to as many digits as needed within a limit."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import mpmath  # type: ignore[import-untyped]

from esplug_tasks_math.expressions import Node
from esplug_tasks_math.limits import Unreadable, spend
from esplug_tasks_math.spelling import listed

#: Limits: bits of a number, largest integer for a factorial, and largest other number for a factorial.
MOST_BITS, LARGEST_FACTORIAL, LARGEST_GAMMA = 20_000, 2_000, 100
#: Minimum precision in bits, and the number of them that rounding errors may affect.
BITS, SLACK = 400, 100
#: Attempts with increasing precision. A value that still grows is a pole, hidden by rounding noise.
ROUNDS = 3
#: Steps of an operation, and of a function such as a logarithm.
CHEAP, COSTLY = 1.0, 12.0


class Undefined(ArithmeticError):  # noqa: N818 - it describes the value
    """An expression has no value at a point."""


def values(expressions: list[Node], point: "Point") -> tuple[list[Any], int]:
    """Evaluate with enough bits to resolve a difference of one in the largest and smallest intermediate numbers.

    Returns:
        The values, and the precision in bits at which to compare them.

    Raises:
        Undefined: an expression has no value at this point.
        Unreadable: a number would be too large, there is a pole, or no steps are left.
    """
    bits = BITS
    for _ in range(ROUNDS):
        evaluation = _Evaluation(point, bits)
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
        kind: kind of values: ``positive``, ``negative``, ``integer`` (2 to 12), or ``chosen``: values near each other
            in ``choice``.
        fixed: values of individual variables.
        choice: values of which each variable takes one.
    """

    number: int
    kind: str = "positive"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    choice: tuple[Fraction, ...] = ()

    def __getitem__(self, name: str) -> Any:
        if name in self.fixed:
            return self.fixed[name]
        if name == "i":
            return mpmath.mpc(0, 1)
        chance = zlib.crc32(f"{self.number} {name}".encode())
        if self.kind == "chosen":
            chosen = self.choice[(self.number + zlib.crc32(name.encode()) % 3) % len(self.choice)]
            return mpmath.mpf(chosen.numerator) / chosen.denominator
        if self.kind == "integer":
            return mpmath.mpf(2 + chance % 11)
        return (-1 if self.kind == "negative" else 1) * mpmath.mpf(1 + chance % 1_000_003) / 150_000


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    name: getattr(mpmath, name.replace("arc", "a"))
    for name in listed(
        """sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan arccot arcsec arccsc arcsinh
    arccosh arctanh arccoth arcsech arccsch"""
    )
} | {"abs": abs, "max": max, "min": min}


class _Evaluation:
    """Evaluation at one point, which records the bits needed for the largest and smallest intermediate numbers."""

    def __init__(self, point: Point, bits: int) -> None:
        self._point = point
        self._scale = (bits / BITS) ** 1.5
        self.bits = 0

    def value(self, node: Node) -> Any:
        try:
            value = self._value(node)
        except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
            if isinstance(error, Unreadable):
                raise
            raise Undefined from error
        if mpmath.isnan(value):
            raise Undefined
        self._count(value)
        return value

    def _value(self, node: Node) -> Any:
        spend(CHEAP * self._scale)
        match node.head:
            case "number":
                self.bits = max(self.bits, self._limited(node.value.denominator.bit_length()))
                self._limited(node.value.numerator.bit_length())
                return self._small(mpmath.mpf(node.value.numerator) / node.value.denominator)
            case "name":
                return self._point[node.name]
            case "pi" | "e":
                return +(mpmath.pi if node.head == "pi" else mpmath.e)
            case "infinity":
                return mpmath.inf
            case "root":
                return self._root(node)
            case "power" if (odd := _odd_root(node.parts[1])) is not None:
                return self._real_root(self.value(node.parts[0]), odd)
        arguments = [self.value(part) for part in node.parts]
        match node.head:
            case "sum":
                return mpmath.fsum(arguments)
            case "product":
                return mpmath.fprod(arguments)
            case "negative":
                return -arguments[0]
            case "quotient":
                return self._small(arguments[0] / arguments[1]) if arguments[0] else arguments[0] / arguments[1]
            case "power":
                return self._power(*arguments)
        return self._function(node.head, arguments)

    def _root(self, node: Node) -> Any:
        index, radicand = (self.value(part) for part in node.parts)
        if not index:
            raise Undefined
        if mpmath.isint(index) and index == int(index) and int(index) % 2:
            return self._real_root(radicand, Fraction(1, int(index)))
        return self._power(radicand, 1 / index)

    def _real_root(self, base: Any, exponent: Fraction) -> Any:
        """Take the real root of a negative number: the cube root of -8 is -2."""
        power = mpmath.mpf(exponent.numerator) / exponent.denominator
        if mpmath.im(base) or mpmath.re(base) >= 0:
            return self._power(base, power)
        return (-1) ** (exponent.numerator % 2) * self._power(-base, power)

    def _power(self, base: Any, exponent: Any) -> Any:
        spend(COSTLY * self._scale)
        if base and not mpmath.isinf(base) and not mpmath.isinf(exponent):
            self._limited(abs(exponent) * (abs(mpmath.mag(base)) + 1))
            if mpmath.mag(base) > SLACK - mpmath.mp.prec:  # otherwise the base may be rounding noise around zero
                return self._small(mpmath.power(base, exponent))
        return mpmath.power(base, exponent)

    def _function(self, head: str, arguments: list[Any]) -> Any:
        spend(COSTLY * self._scale)
        if head in ("sinh", "cosh", "tanh", "coth"):
            self._limited(2 * abs(arguments[0]))
        if head in _FUNCTIONS:
            if head in ("max", "min") and any(map(mpmath.im, arguments)):
                raise Undefined
            return _FUNCTIONS[head](*arguments)
        if head == "log":
            return mpmath.log(arguments[0]) / mpmath.log(arguments[1])
        if head in ("floor", "ceiling"):
            if mpmath.im(arguments[0]):
                raise Undefined
            return _whole(arguments[0], mpmath.floor if head == "floor" else mpmath.ceil)
        if head == "factorial":
            return self._factorial(arguments[0])
        if head == "binomial":
            top, bottom = arguments
            return self._factorial(top) / (self._factorial(bottom) * self._factorial(top - bottom))
        raise Unreadable(f"{head} is not evaluated")

    def _factorial(self, number: Any) -> Any:
        spend(10 * COSTLY * self._scale)
        if mpmath.im(number):
            raise Undefined
        whole = mpmath.isint(number)
        if abs(number) > (LARGEST_FACTORIAL if whole else LARGEST_GAMMA) or (not whole and mpmath.mp.prec > 2 * BITS):
            raise Unreadable("too large")
        return mpmath.factorial(number)

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


def _odd_root(exponent: Node) -> Fraction | None:
    """Return an exponent that is a fraction with an odd denominator."""
    sign = 1
    if exponent.head == "negative":
        sign, exponent = -1, exponent.parts[0]
    if (
        exponent.head == "quotient"
        and all(part.head == "number" for part in exponent.parts)
        and exponent.parts[1].value
    ):
        fraction = sign * exponent.parts[0].value / exponent.parts[1].value
        return fraction if fraction.denominator % 2 and fraction.denominator > 1 else None
    return None


def _whole(number: Any, step: Callable[[Any], Any]) -> Any:
    """Round down or up, but to the nearest whole number if only the last digits differ."""
    nearest = mpmath.nint(number)
    return nearest if abs(number - nearest) < mpmath.mpf(2) ** (SLACK - mpmath.mp.prec) else step(number)
