"""Arithmetic for the calculator: exact, bounded, and without executing anything."""

import ast
import operator
from collections.abc import Callable
from fractions import Fraction

LONGEST = 100  # characters
_DIGITS = 12  # of one number
_ALLOWED = frozenset("0123456789.+-*/() ")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate(expression: str) -> Fraction:
    """Return the value of an expression of numbers, ``+ - * /`` and parentheses.

    Raises:
        ValueError: the expression is anything else, divides by zero, or has more than 100 characters.
    """
    text = expression.strip()
    if not text or len(text) > LONGEST or not _ALLOWED.issuperset(text) or "**" in text or "//" in text:
        raise ValueError("not an expression of numbers, + - * / and parentheses")
    try:
        return _value(ast.parse(text, mode="eval").body, text)
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("not an expression") from None


def shown(value: Fraction) -> str:
    """Write a value as a whole number, or rounded to four decimals."""
    if value.denominator == 1:
        return str(value.numerator)
    rounded = round(value * 10_000)
    whole, rest = divmod(abs(rounded), 10_000)
    return f"{'-' if rounded < 0 else ''}{whole}.{rest:04}".rstrip("0").rstrip(".")


def _value(node: ast.expr, text: str) -> Fraction:
    # Each node takes a character, so the recursion is at most 100 deep, and no number has more than 100 digits.
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, text), _value(right, text))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, text)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, text)
        case ast.Constant(value=int() | float()):
            written = ast.get_source_segment(text, node) or ""
            if len(written) > _DIGITS:
                raise ValueError(f"a number has more than {_DIGITS} digits")
            return Fraction(written)
    raise ValueError("not an expression of numbers, + - * / and parentheses")
