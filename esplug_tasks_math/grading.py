r"""Grader of mathematics answers: a reward of 1.0 or 0.0, with a label for the outcome.

It compares, cheapest first: text, tokens, exact numbers, structure (lists, intervals, ...), and values of expressions.
Grades do not depend on earlier answers.
"""

import ast
from fractions import Fraction

from esplug import Reward
from esplug_tasks_math import equality, rationals, units
from esplug_tasks_math.boxes import last_boxed
from esplug_tasks_math.form import ExactForm
from esplug_tasks_math.latex import Tokens, tokens
from esplug_tasks_math.limits import LONGEST_ANSWER, Unreadable, budget
from esplug_tasks_math.measures import NONE

#: Largest relative difference between an answer and the rounded number that it rounds to.
TOLERANCE = Fraction(1, 100)


class Gold(str):
    """The text of an expected answer whose data set says how exact the form of answers must be."""

    exact_form: ExactForm = "numbers"

    @classmethod
    def of(cls, text: str, exact_form: ExactForm) -> "Gold":
        """Make a gold answer with its form."""
        gold = cls(text)
        gold.exact_form = exact_form
        return gold


def grade(model_output: str, gold: str, exact_form: ExactForm = "numbers") -> Reward:
    r"""Grade text by the content of its last ``\boxed{...}``. Never raises.

    ``exact_form`` says how far the answer must be simplified: see :mod:`esplug_tasks_math.form`. Labels: ``correct``,
    ``wrong``, ``no_box``, and ``unparsable`` for a box whose content cannot be parsed or is too large.
    """
    given = last_boxed(model_output)
    label = "no_box" if given is None else outcome(given, gold, exact_form)
    correct = label == "correct"
    return Reward(float(correct), label, correct=correct)


def same_answer(given: str, gold: str, exact_form: ExactForm = "numbers") -> bool:
    """Return whether two answers are equal. ``gold`` may be the text of a list of accepted answers."""
    return outcome(given, gold, exact_form) == "correct"


def outcome(given: str, gold: str, exact_form: ExactForm = "numbers") -> str:
    """Return ``correct``, ``wrong`` or ``unparsable``."""
    if gold.strip() in (given.strip(), given.strip().removeprefix("$").removesuffix("$").strip()):
        return "correct"
    try:
        readings = _readings(given)
        if not readings[0]:
            return "unparsable"
        with budget():
            right = any(_same(given, readings, text, exact_form, rounded=_is_list(gold)) for text in accepted(gold))
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


def _readings(given: str, *, glued: bool = False) -> list[Tokens]:
    """Return the tokens of an answer, and those with bare words after a number as text, if they differ."""
    plain = tokens(given)
    try:
        spelt = tokens(units.spelt_out(given, glued=glued))
    except Unreadable:
        return [plain]
    return [plain] if spelt == plain else [plain, spelt]


def _same(given: str, readings: list[Tokens], text: str, exact_form: ExactForm, *, rounded: bool) -> bool:
    try:
        gold = tokens(text)
    except Unreadable:  # not the fault of the model; only identical text could have been correct
        return False
    if units.split(gold)[1] != NONE:  # 5m is five meters only if the gold answer has a unit
        readings = _readings(given, glued=True)
    return bool(gold) and any(_reading_is(answer, gold, exact_form, rounded=rounded) for answer in readings)


def _reading_is(answer: Tokens, gold: Tokens, exact_form: ExactForm, *, rounded: bool) -> bool:
    return answer == gold or (rounded and _rounds_to(answer, gold)) or equality.same(answer, gold, exact_form)


def _is_list(gold: str) -> bool:
    return gold.lstrip().startswith(("['", '["')) and gold.rstrip().endswith("]")


def _rounds_to(answer: Tokens, gold: Tokens) -> bool:
    """Return whether a number with more digits rounds to a measured one."""
    (left, unit), (right, gold_unit) = units.split(answer), units.split(gold)
    number, y, half = rationals.number(left), rationals.rational(right), rationals.precision(right)
    x = number.value if number and number.form in ("digits", "scientific") else None
    if x is None or y is None or half is None or not units.may_be_same(unit, gold_unit, x):
        return False
    return abs(x - y) <= min(half, abs(y) * TOLERANCE)
