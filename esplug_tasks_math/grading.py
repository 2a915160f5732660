r"""Grader of mathematics answers: a reward of 1.0 or 0.0, with a label for the outcome.

It compares, cheapest first: text, tokens, exact numbers, structure (lists, intervals, ...), and values of expressions.
Grades do not depend on earlier answers.
"""

import ast
from fractions import Fraction

from esplug import Reward
from esplug_tasks_math import equality, rationals, units
from esplug_tasks_math.boxes import last_boxed
from esplug_tasks_math.latex import LONGEST_ANSWER, Tokens, Unreadable, tokens

#: Largest relative difference between an answer and the rounded number that it rounds to.
TOLERANCE = Fraction(1, 100)


def grade(model_output: str, gold: str) -> Reward:
    r"""Grade text by the content of its last ``\boxed{...}``. Never raises.

    Labels: ``correct``, ``wrong``, ``no_box``, and ``unparsable`` for a box whose content cannot be parsed or is too
    large.
    """
    given = last_boxed(model_output)
    label = "no_box" if given is None else outcome(given, gold)
    correct = label == "correct"
    return Reward(float(correct), label, correct=correct)


def same_answer(given: str, gold: str) -> bool:
    """Return whether two answers are equal. ``gold`` may be the text of a list of accepted answers."""
    return outcome(given, gold) == "correct"


def outcome(given: str, gold: str) -> str:
    """Return ``correct``, ``wrong`` or ``unparsable``."""
    if gold.strip() in (given.strip(), given.strip().removeprefix("$").removesuffix("$").strip()):
        return "correct"
    try:
        answer = tokens(given)
        if not answer:
            return "unparsable"
        right = any(_same(answer, text, rounded=_is_list(gold)) for text in accepted(gold))
        return "correct" if right else "wrong"
    except (Unreadable, RecursionError):
        return "unparsable"


def accepted(gold: str) -> list[str]:
    r"""Return the accepted answers of a list such as ``['9.6\n', '9.60']``, or else the text itself."""
    try:
        listed = ast.literal_eval(gold.strip()) if _is_list(gold) and len(gold) <= LONGEST_ANSWER else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        listed = None
    return listed if listed and all(isinstance(text, str) for text in listed) else [gold]


def _same(answer: Tokens, text: str, *, rounded: bool) -> bool:
    try:
        gold = tokens(text)
    except Unreadable:  # not the fault of the model; only identical text could have been correct
        return False
    return answer == gold or (rounded and _rounds_to(answer, gold)) or equality.same(answer, gold)


def _is_list(gold: str) -> bool:
    return gold.lstrip().startswith(("['", '["')) and gold.rstrip().endswith("]")


def _rounds_to(answer: Tokens, gold: Tokens) -> bool:
    """Return whether a number with more digits rounds to a measured one."""
    (left, unit), (right, gold_unit) = units.split(answer), units.split(gold)
    x, y, half = rationals.rational(left), rationals.rational(right), rationals.precision(right)
    if x is None or y is None or half is None or not units.may_be_same(unit, gold_unit):
        return False
    return abs(x - y) <= min(half, abs(y) * TOLERANCE)
