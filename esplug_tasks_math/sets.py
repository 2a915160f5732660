r"""Sets of numbers: intervals from inequalities, the real line, and unions in one form."""

from typing import Any

import mpmath  # type: ignore[import-untyped]

from esplug_tasks_math import symbolic
from esplug_tasks_math.latex import Tokens
from esplug_tasks_math.relations import INEQUALITIES, is_name
from esplug_tasks_math.shapes import Answer, Expression, Interval, Items, Relation, Union

_MINUS, _PLUS = Expression(("-", r"\infty")), Expression((r"\infty",))
LINE = Interval(_MINUS, _PLUS, (False, False))
_REALS = {
    ("\\mathbb", "R"), (r"\text{all real numbers}",), (r"\text{all reals}",), (r"\text{all real}",), (r"\text{reals}",),
    (r"\text{real numbers}",), (r"\text{all real values}",),
}  # fmt: skip


def as_set(answer: Answer) -> Answer:
    r"""Reinterpret ``(a,b)`` as an interval, and ``x > 2`` or ``\mathbb{R}`` as a set of numbers."""
    match answer:
        case Expression(tokens) if tokens in _REALS:
            return LINE
        case Items("tuple", (low, high)):
            return Interval(low, high, (False, False))
        case Relation((name, value), (r"\neq",)) if is_name(name):
            return without(LINE, Expression(value)) or answer
        case Relation(sides, signs) if all(sign in INEQUALITIES for sign in signs):
            return _solutions(sides, signs) or answer
    return answer


def without(whole: Answer, point: Answer) -> Answer | None:
    """Return the real line without a point, or ``None`` if ``whole`` is not the line."""
    if whole != LINE:
        return None
    return Union((Interval(_MINUS, point, (False, False)), Interval(point, _PLUS, (False, False))))


def intersection(parts: list[Answer]) -> Answer | None:
    """Return the interval between a lower and an upper bound, or ``None`` if the parts are not two such sets."""
    match parts:
        case (Interval() as one, Interval() as other):
            if one.low == _MINUS != other.low:
                one, other = other, one
            if one.high == _PLUS and other.low == _MINUS != one.low and other.high != _PLUS:
                return Interval(one.low, other.high, (one.closed[0], other.closed[1]))
    return None


def merged(parts: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """Join intervals that overlap or touch, and drop empty ones, if all ends are known numbers."""
    known: list[tuple[Any, Any, Interval]] = []
    for part in parts:
        if not isinstance(part, Interval):
            return parts
        ends = [_number(end) for end in (part.low, part.high)]
        if None in ends:
            return parts
        if ends[0] <= ends[1]:
            known.append((ends[0], ends[1], part))
    known.sort(key=lambda each: (each[0], not each[2].closed[0], each[1]))
    joined = known[:1]
    for low, high, part in known[1:]:
        before, end, last = joined[-1]
        if low < end or (low == end and (part.closed[0] or last.closed[1])):
            longer = part if (high, part.closed[1]) > (end, last.closed[1]) else last
            joined[-1] = before, max(high, end), Interval(last.low, longer.high, (last.closed[0], longer.closed[1]))
        else:
            joined.append((low, high, part))
    return tuple(part for *_, part in joined)


def _number(end: Answer) -> Any:
    if end in (_MINUS, _PLUS) or end == Expression(("+", r"\infty")):
        return -mpmath.inf if end == _MINUS else mpmath.inf
    return symbolic.constant(end.tokens) if isinstance(end, Expression) else None


def _solutions(sides: tuple[Tokens, ...], signs: tuple[str, ...]) -> Answer | None:
    if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
        sides, signs = sides[::-1], tuple(_mirrored(sign) for sign in signs)
    if len(sides) == 3 and all(sign in (">", r"\geq") for sign in signs):
        sides, signs = sides[::-1], tuple(_mirrored(sign) for sign in signs[::-1])
    closed = tuple(sign in (r"\leq", r"\geq") for sign in signs)
    if len(sides) == 2 and is_name(sides[0]):
        bound = Expression(sides[1])
        upper = signs[0] in ("<", r"\leq")
        return Interval(_MINUS, bound, (False, closed[0])) if upper else Interval(bound, _PLUS, (closed[0], False))
    if len(sides) == 3 and is_name(sides[1]) and all(sign in ("<", r"\leq") for sign in signs):
        return Interval(Expression(sides[0]), Expression(sides[2]), (closed[0], closed[1]))
    return None


def _mirrored(sign: str) -> str:
    return {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}[sign]
