"""Guards: what an answer must be before the library's grader reads it.

The graders of reasoning-gym 0.1.25 were written for answers of well-meaning models. Some pass an answer to ``eval`` or
to SymPy's ``parse_expr``, which evaluates Python; some give full marks to a wrong one. A guard rejects such answers, so
that the grader never sees them. All other answers reach the library's grader as they are.
"""

import ast
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

#: An answer is rejected, whatever the task, if it is longer: no right answer has as many characters.
LONGEST = 20_000
_LONGEST_EXPRESSION = 1_000
_LARGEST = 10**15
_LARGEST_EXPONENT = 100

Guard = Callable[[str, Mapping[str, Any]], bool]

_NUMBER = re.compile(r"[-+]?(\d{1,30}/\d{1,30}|(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][-+]?\d{1,2})?)")
_FUNCTIONS = frozenset(["sqrt", "exp", "log", "ln", "sin", "cos", "tan", "asin", "acos", "atan"])
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.UAdd, ast.USub)
_ARITHMETIC = frozenset("0123456789+-*/() ")


def accepts(answer: str, target: Mapping[str, Any]) -> bool:
    """Return whether the library's grader may read an answer to the task in ``target["task"]``."""
    guard = GUARDS.get(target["task"])
    return len(answer) <= LONGEST and (guard is None or guard(answer, target))


def disarm(grader: Any) -> None:
    """Let ``eval`` in the modules of a grader read literals only. Some apply it to answers, such as lists of numbers.

    The names are global variables of the modules, which hide the built-in functions. Only for a process that makes no
    rows, because some generators evaluate their own questions.
    """
    for kind in type(grader).__mro__:
        module = sys.modules[kind.__module__]
        if module.__name__.startswith("reasoning_gym.") and module.__name__ not in _EVALUATES_QUESTIONS:
            vars(module)["eval"] = ast.literal_eval
            vars(module)["exec"] = None


#: Modules whose grader applies ``eval`` to the question, and reads the answer with ``int``.
_EVALUATES_QUESTIONS = frozenset({"reasoning_gym.arithmetic.bitwise_arithmetic"})


def _is_expression(answer: str, target: Mapping[str, Any]) -> bool:
    """Accept a formula of numbers, variables of one letter, ``+ - * / **`` and common functions, of bounded size."""
    tree = _parsed(answer)
    return tree is not None and _is_formula(tree, str(target["metadata"].get("variable", "x")))


def _is_arithmetic(answer: str, target: Mapping[str, Any]) -> bool:
    """Accept ``+ - * /`` on the numbers of the question, each used exactly once."""
    if not _ARITHMETIC.issuperset(answer) or "**" in answer or "//" in answer or not _is_expression(answer, target):
        return False
    used = sorted(map(int, re.findall(r"\d+", answer)))
    return used == sorted(target["metadata"]["numbers"])


def _is_whole_arithmetic(answer: str, target: Mapping[str, Any]) -> bool:
    """Reject fractions too, which the grader rounds towards zero: it gives full marks to 24.5."""
    from sympy.parsing.sympy_parser import parse_expr

    return _is_arithmetic(answer, target) and bool(parse_expr(answer).is_integer)


def _parsed(answer: str) -> ast.expr | None:
    if len(answer) > _LONGEST_EXPRESSION:
        return None
    try:
        return ast.parse(answer.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_formula(node: ast.expr, variable: str) -> bool:
    match node:
        case ast.Constant(value=int() | float() as value):
            return not isinstance(value, bool) and abs(value) < _LARGEST
        case ast.Name(id=name):
            # Other capital letters are functions of SymPy.
            return name in (variable, "pi", "C", "E") or (len(name) == 1 and "a" <= name <= "z")
        case ast.UnaryOp(op=op, operand=operand):
            return isinstance(op, _OPERATORS) and _is_formula(operand, variable)
        case ast.BinOp(left=left, op=op, right=right):
            bounded = isinstance(op, _OPERATORS) and (not isinstance(op, ast.Pow) or _is_bounded_power(left, right))
            return bounded and _is_formula(left, variable) and _is_formula(right, variable)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
            return name in _FUNCTIONS and _is_formula(argument, variable)
    return False


def _is_bounded_power(base: ast.expr, exponent: ast.expr) -> bool:
    """Reject powers of powers, and large exponents, of which SymPy computes every digit or every term."""
    inside = [*ast.walk(base), *ast.walk(exponent)]
    numbers = [each.value for each in ast.walk(exponent) if isinstance(each, ast.Constant)]
    if any(isinstance(each, ast.BinOp) and isinstance(each.op, ast.Pow) for each in inside):
        return False
    return math.prod(max(1.0, abs(n)) for n in numbers if isinstance(n, int | float)) <= _LARGEST_EXPONENT


def _is_close(answer: str, target: Mapping[str, Any]) -> bool:
    """Accept a number near the right one. The grader gives full marks to any prefix of it, such as 0 for 0.65625."""

    def value(text: str) -> float:
        text, _, denominator = text.replace(",", "").partition("/")
        return float(text) / float(denominator or 1) if float(denominator or 1) else math.nan

    return bool(_NUMBER.fullmatch(answer.replace(",", ""))) and abs(value(answer) - value(target["answer"])) <= 1e-4


def _is_finite(answer: str, target: Mapping[str, Any]) -> bool:
    """Reject NaN, which has distance NaN from the right number; the grader then gives full marks."""
    return "nan" not in answer.lower()


def _is_same(answer: str, target: Mapping[str, Any]) -> bool:
    """Accept only the right answer. The grader gives full marks to every text, because ``bool("False")`` is true."""
    return bool(answer == target["answer"])


#: The guard of each task that needs one.
GUARDS: Mapping[str, Guard] = {
    "coin_flip": _is_close,
    "complex_arithmetic": _is_finite,
    "countdown": _is_arithmetic,
    "game_of_life_halting": _is_same,
    "intermediate_integration": _is_expression,
    "polynomial_multiplication": _is_expression,
    "puzzle24": _is_whole_arithmetic,
    "simple_integration": _is_expression,
}
