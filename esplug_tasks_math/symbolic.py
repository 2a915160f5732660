"""Equality of expressions by value: parsed as trees and evaluated by mpmath to many digits.

Expressions are never simplified: they are equal if they agree to a hundred digits at every point. Work is bounded:
numbers that are too large are rejected before they are computed, and every operation counts as steps.
"""

from fractions import Fraction
from typing import Any

import mpmath  # type: ignore[import-untyped]

from esplug_tasks_math.evaluation import Point, Undefined, equal, values
from esplug_tasks_math.expressions import Node, expression, names, walk
from esplug_tasks_math.latex import Tokens
from esplug_tasks_math.limits import Unreadable, spend

#: Points at which expressions with variables are compared, and chosen points for functions with steps and bends.
POINTS, MOST_CHOSEN = 6, 40
#: Steps for parsing one token.
STEPS_OF_TOKEN = 2.0

_STEPS, _BENDS = frozenset({"floor", "ceiling", "factorial", "binomial"}), frozenset({"abs", "max", "min", "root"})
_INDICES = frozenset("ijkmnpqr")


def same_value(given: Tokens, gold: Tokens) -> bool:
    """Return whether two expressions are equal for positive values of their variables.

    Variables named like indices in floors and factorials, and variables in powers of a negative number, are integers:
    it is enough that the expressions agree on positive integers. Expressions with absolute values are also compared for
    negative values. Expressions with steps or bends are also compared at and around the numbers in them. The result is
    ``False`` if ``gold`` cannot be parsed.

    Raises:
        Unreadable: ``given`` cannot be parsed, or is too large.
    """
    left, right = _both(given, gold)
    return right is not None and _agree(left, right)


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
    except Undefined:
        return False


def constant(answer: Tokens) -> Any:
    """Return the value of an expression without variables as a real number of mpmath, or ``None``."""
    try:
        node = _parsed(answer)
        if names(node):
            return None
        (found,), _ = values([node], Point(0))
    except (Unreadable, Undefined):
        return None
    return None if mpmath.im(found) else mpmath.re(found)


def _parsed(answer: Tokens) -> Node:
    spend(STEPS_OF_TOKEN * len(answer))
    return expression(answer)


def _both(given: Tokens, gold: Tokens) -> tuple[Node, Node | None]:
    left = _parsed(given)
    try:
        return left, _parsed(gold)
    except Unreadable:
        return left, None


def _agree(left: Node, right: Node) -> bool:
    if not names(left) | names(right):
        return _agree_at(left, right, [Point(0)])
    heads = {node.head for each in (left, right) for node in walk(each)}
    if not heads & (_STEPS | _BENDS):
        integers = _has_signs(left) or _has_signs(right)
        return _agree_at(left, right, _points("positive")) or (
            integers and _agree_at(left, right, _points("integer", 2 * POINTS))
        )
    chosen = _chosen(left, right, whole=bool(heads & _STEPS))
    if heads & _STEPS and (_is_for_integers(left) or _is_for_integers(right)):
        choice = tuple(number for number in chosen[0].choice if number.denominator == 1 and number > 0)
        whole = [Point(number, "chosen", choice=choice) for number in range(len(choice))]
        return _agree_at(left, right, _points("integer", 2 * POINTS)) and _agree_at(left, right, whole, least=0)
    if heads & {"abs", "max", "min"} and not _agree_at(left, right, _points("negative"), least=0):
        return False
    return _agree_at(left, right, _points("positive")) and _agree_at(left, right, chosen, least=0)


def _points(kind: str, count: int = POINTS) -> list[Point]:
    return [Point(number, kind) for number in range(count)]


def _chosen(left: Node, right: Node, *, whole: bool) -> list[Point]:
    """Return points at, between and beyond the numbers in two expressions, where steps and bends are."""
    signs = (
        (1, -1) if any(node.head in ("abs", "max", "min") for each in (left, right) for node in walk(each)) else (1,)
    )
    found = {abs(node.value) for each in (left, right) for node in walk(each) if node.head == "number"}
    numbers = sorted(number for number in found if 0 < number < 10**6)[:4]
    near = {
        sign * (number + step) for number in numbers for step in (0, 1, 2, -1) for sign in signs if number + step > 0
    }
    far = {sign * number * factor for number in numbers for factor in (2, 3, Fraction(1, 2)) for sign in signs}
    steps = {Fraction(number) for number in range(1, 7)} if whole else {Fraction(1000)}
    choice = tuple(sorted(near | far | steps))[:MOST_CHOSEN]
    return [Point(number, "chosen", choice=choice) for number in range(len(choice))]


def _has_signs(node: Node) -> bool:
    """Return whether a variable is an exponent of a negative number."""
    return any(each.head == "power" and _is_negative(each.parts[0]) and names(each.parts[1]) for each in walk(node))


def _is_negative(node: Node) -> bool:
    return node.head == "negative" and node.parts[0].head == "number"


def _is_for_integers(node: Node) -> bool:
    """Return whether variables are integers: indices in stepwise functions, or exponents of a negative number."""
    steps = any(each.head in _STEPS for each in walk(node))
    return (steps and names(node) <= _INDICES) or _has_signs(node)


def _agree_at(left: Node, right: Node, points: list[Point], least: int | None = None) -> bool:
    seen = 0
    for point in points:
        try:
            (x, y), bits = values([left, right], point)
        except Undefined:
            continue
        except Unreadable:
            if point.kind != "chosen":
                raise
            spend(0)  # a value that is too large at a chosen point; without steps left, this raises again
            continue
        if point.kind in ("negative", "chosen") and (mpmath.im(x) or mpmath.im(y)):
            continue
        seen += 1
        if not equal(x, y, bits):
            return False
    return seen >= (max(1, len(points) // 2) if least is None else least)


def _is_multiple(left: Node, right: Node) -> bool:
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


def _same_solutions(left: Node, right: Node) -> bool:
    variables = names(left)
    if variables != names(right):
        return False
    compared = 0
    for name in sorted(variables):
        for number in range(POINTS):
            x, y = _solution(left, name, number), _solution(right, name, number)
            if x is None or y is None:
                break
            if not equal(x, y, 300):
                return False
            compared += 1
    return compared > 0


def _solution(node: Node, name: str, number: int) -> Any:
    """Return the zero of an expression, or ``None`` if it is not linear in this variable."""
    try:
        found = [values([node], Point(number, fixed={name: mpmath.mpf(at)})) for at in (1, 2, 3)]
    except Undefined:
        return None
    (one,), (two,), (three,) = (value for value, _ in found)
    bits = max(bits for _, bits in found)
    with mpmath.workprec(bits):
        slope = two - one
        return 1 - one / slope if slope and equal(slope, three - two, bits) else None
