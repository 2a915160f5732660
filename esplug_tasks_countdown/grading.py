r"""Grader of Countdown answers: exact arithmetic and bounded work on any text, without executing anything.

An answer consists of whole numbers, ``+ - * /``, brackets and white space, or other common spellings of these. The
expression and each bracket may start with one sign: ``-3+8`` and ``5*(-3+8)`` are fine; ``--3``, ``5-+3``, ``-(-3)``
are not. ``= 43`` may follow, if the expression has that value.
"""

import ast
import operator
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from esplug import Reward
from esplug_tasks_countdown import columns

MAX_EXPRESSION = 200
TOLERANCE = Fraction(1, 100_000)

_ALLOWED = frozenset("0123456789+-*/()[]{} ")
_SIGNS = str.maketrans(
    {
        "\N{MULTIPLICATION SIGN}": "*",
        "\N{MIDDLE DOT}": "*",
        "\N{DOT OPERATOR}": "*",
        "\N{DIVISION SIGN}": "/",
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
    }
)
# A size, such as \left, becomes a space, so that it never joins two numbers.
_COMMANDS = {"times": "*", "cdot": "*", "div": "/", "left": " ", "right": " "}
_COMMAND = re.compile(rf"\\({'|'.join(_COMMANDS)})(?![A-Za-z])")
# Two operators in a row (`**`, `//`, or a sign that follows an operator or another sign), or a leading zero.
_FORBIDDEN = re.compile(r"[-+*/] *[-+*/]|(?<![0-9])0[0-9]")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def grade(model_output: str, numbers: Sequence[int], target: Fraction, think_words: int = 0) -> Reward:
    """Grade text that continues an opening ``<think>``: ``0.1 * format + answer``.

    The answer is 1.0 if the last answer block uses each of ``numbers`` exactly once and equals ``target`` within
    1e-5. Labels: ``correct``, ``wrong_value`` (including division by zero, and a wrong value after an equals sign),
    ``wrong_numbers``, ``bad_expression``, ``no_answer``. Never raises.
    """
    text = "<think>" + model_output
    form = format_reward(text, think_words)
    label = _outcome(last_answer(text), numbers, target)
    correct = label == "correct"
    return Reward(0.1 * form + correct, label, correct, {"format": form})


def format_reward(text: str, think_words: int = 0) -> float:
    r"""Return 1.0 for exactly ``<think>...</think>\n<answer>...</answer>``, one block of each.

    White space after the last tag is ignored. Any other text gets 0.1 for a closed think block and 0.5 for a closed
    answer block. A think block with fewer than ``think_words`` different words or numbers does not count.
    """
    thought = _block(text, "think")
    reasoned = thought is not None and (not think_words or len(set(re.findall(r"\w+", thought))) >= think_words)
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    if (
        reasoned
        and all(text.count(tag) == 1 for tag in tags)
        and text.startswith("<think>")
        and "</think>\n<answer>" in text
        and text.rstrip().endswith("</answer>")
    ):
        return 1.0
    return 0.1 * reasoned + 0.5 * (_block(text, "answer") is not None)


def last_answer(text: str) -> str | None:
    """Return the content of the last closed answer block, or ``None`` if there is none."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>") : end]


def evaluate(expression: str) -> Fraction:
    """Return the exact value of an expression, without an equals sign.

    Raises:
        ValueError: the expression is longer than 200 characters or breaks the grammar of this module.
        ZeroDivisionError: the expression divides by zero.
    """
    return _value(_parse(_plain(expression)))


def _outcome(answer: str | None, numbers: Sequence[int], target: Fraction) -> str:
    if answer is None:
        return "no_answer"
    try:
        expression, equals, stated = _plain(answer).partition("=")
        tree = _parse(expression)
        values = [columns.target(stated)] if equals else []
    except ValueError:
        return "bad_expression"
    used = [int(digits) for digits in re.findall("[0-9]+", expression)]
    if sorted(used) != sorted(numbers):
        return "wrong_numbers"
    try:
        values.append(_value(tree))
    except ZeroDivisionError:
        return "wrong_value"
    return "correct" if all(abs(value - target) <= TOLERANCE for value in values) else "wrong_value"


def _block(text: str, name: str) -> str | None:
    """Return what is between the first opening tag and the next closing tag, or ``None`` without such tags."""
    _, opening, rest = text.partition(f"<{name}>")
    inner, closing, _ = rest.partition(f"</{name}>")
    return inner if opening and closing else None


def _plain(answer: str) -> str:
    """Return an answer with ``+ - * /`` for the other signs, and spaces for other white space."""
    if len(answer) > MAX_EXPRESSION:
        raise ValueError("too long")
    spaced = "".join(" " if character.isspace() else character for character in answer)
    return _COMMAND.sub(lambda command: _COMMANDS[command[1]], spaced.translate(_SIGNS))


def _parse(expression: str) -> ast.expr:
    if not _ALLOWED.issuperset(expression):
        raise ValueError("a character that is neither a digit, an operator nor a bracket")
    if _FORBIDDEN.search(expression):
        raise ValueError("two operators in a row, or a leading zero")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("not an expression") from error
    return _checked(tree)


def _checked(node: ast.expr) -> ast.expr:
    """Return the node without square brackets and braces, which Python parses as lists and sets."""
    # Each node takes a character, so there are at most MAX_EXPRESSION and the recursion is shallow.
    match node:
        case ast.Constant(value=int()):
            return node
        case ast.List(elts=[inner]) | ast.Set(elts=[inner]):
            return _checked(inner)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as op, right=right):
            return ast.BinOp(_checked(left), op, _checked(right))
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as op, operand=operand):
            operand = _checked(operand)
            if not isinstance(operand, ast.UnaryOp):
                return ast.UnaryOp(op, operand)
    raise ValueError("only whole numbers, + - * / and brackets count")


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op=op, operand=operand):
            return -_value(operand) if isinstance(op, ast.USub) else _value(operand)
        case ast.Constant(value=int(number)):
            return Fraction(number)
    raise AssertionError("unreachable: _checked rejects other nodes")
