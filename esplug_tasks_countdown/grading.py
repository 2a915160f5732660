"""Grader of Countdown answers: exact arithmetic and bounded work on any text, without executing anything.

An answer consists of whole numbers, ``+ - * /``, parentheses and spaces. The expression and each parenthesis may
start with one sign: ``-3+8`` and ``5*(-3+8)`` are fine; ``--3``, ``5-+3``, ``-(-3)`` are not.
"""

import ast
import operator
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from esplug import Reward

MAX_EXPRESSION = 200
TOLERANCE = Fraction(1, 100_000)

_ALLOWED = frozenset("0123456789+-*/() ")
# Two operators in a row: `**`, `//`, or a sign that follows an operator or another sign.
_ADJACENT_OPERATORS = re.compile(r"[-+*/] *[-+*/]")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def grade(model_output: str, numbers: Sequence[int], target: Fraction) -> Reward:
    """Grade text that continues an opening ``<think>``: ``0.1 * format + answer``.

    The answer is 1.0 if the last answer block uses each of ``numbers`` exactly once and equals ``target`` within
    1e-5. Labels: ``correct``, ``wrong_value`` (including division by zero), ``wrong_numbers``, ``bad_expression``,
    ``no_answer``. Never raises.
    """
    text = "<think>" + model_output
    form = format_reward(text)
    label = _outcome(last_answer(text), numbers, target)
    correct = label == "correct"
    return Reward(0.1 * form + correct, label, correct, {"format": form})


def format_reward(text: str) -> float:
    r"""Return 1.0 for exactly ``<think>...</think>\n<answer>...</answer>``, one block of each.

    White space after the last tag is ignored. Any other text gets 0.1 for a closed think block and 0.5 for a closed
    answer block.
    """
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    if (
        all(text.count(tag) == 1 for tag in tags)
        and text.startswith("<think>")
        and "</think>\n<answer>" in text
        and text.rstrip().endswith("</answer>")
    ):
        return 1.0
    return 0.1 * _has_block(text, "think") + 0.5 * _has_block(text, "answer")


def last_answer(text: str) -> str | None:
    """Return the content of the last closed answer block, or ``None`` if there is none."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>") : end]


def evaluate(expression: str) -> Fraction:
    """Return the exact value of an expression.

    Raises:
        ValueError: the expression is longer than 200 characters or breaks the grammar of this module.
        ZeroDivisionError: the expression divides by zero.
    """
    return _value(_parse(expression))


def _outcome(answer: str | None, numbers: Sequence[int], target: Fraction) -> str:
    if answer is None:
        return "no_answer"
    try:
        tree = _parse(answer)
    except ValueError:
        return "bad_expression"
    used = [int(digits) for digits in re.findall("[0-9]+", answer)]
    if sorted(used) != sorted(numbers):
        return "wrong_numbers"
    try:
        return "correct" if abs(_value(tree) - target) <= TOLERANCE else "wrong_value"
    except ZeroDivisionError:
        return "wrong_value"


def _has_block(text: str, name: str) -> bool:
    start = text.find(f"<{name}>")
    return start >= 0 and text.find(f"</{name}>", start) >= 0


def _parse(expression: str) -> ast.expr:
    if len(expression) > MAX_EXPRESSION or not _ALLOWED.issuperset(expression):
        raise ValueError("too long, or a character that is neither a digit, an operator nor a parenthesis")
    if _ADJACENT_OPERATORS.search(expression):
        raise ValueError("two operators in a row")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("not an expression") from error
    _check(tree)
    return tree


def _check(node: ast.expr) -> None:
    # Each node takes a character, so there are at most MAX_EXPRESSION and the recursion is shallow.
    match node:
        case ast.Constant(value=int()):
            return
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            _check(left)
            _check(right)
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand) if not isinstance(operand, ast.UnaryOp):
            _check(operand)
        case _:
            raise ValueError("only whole numbers, + - * / and parentheses count")


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op=op, operand=operand):
            return -_value(operand) if isinstance(op, ast.USub) else _value(operand)
        case ast.Constant(value=int(number)):
            return Fraction(number)
    raise AssertionError("unreachable: _check rejects other nodes")
