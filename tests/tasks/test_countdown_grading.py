"""Grading of countdown answers: against an independent oracle, by form, and of hostile text."""

import re
import warnings
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import esplug_tasks_countdown as task
from esplug_tasks_countdown import grading
from tests.helpers.timing import within


def answer(expression: str) -> str:
    return f"thinking</think>\n<answer>{expression}</answer>"


# --- the arithmetic of an answer ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "numbers", "target", "label"),
    [
        ("3 + 5 * 8", [3, 5, 8], "43", "correct"),
        ("(3+5)*8", [8, 5, 3], "64", "correct"),
        ("  8 / (3 - 8 / 3) ", [3, 3, 8, 8], "24", "correct"),
        ("5 / 2", [2, 5], "2.5", "correct"),
        ("7 / 3", [3, 7], "7/3", "correct"),
        ("7 / 3", [3, 7], "2.333333", "correct"),  # within 1e-5
        ("7 / 3", [3, 7], "2.3333", "wrong_value"),
        ("-3+8", [3, 8], "5", "correct"),
        ("+3+8", [3, 8], "11", "correct"),
        ("5*(-3+8)", [3, 5, 8], "25", "correct"),
        ("5-(-3)", [3, 5], "8", "correct"),
        ("5-5", [5, 5], "0", "correct"),
        ("3+5", [3, 5], "9", "wrong_value"),
        ("3/(5-5)", [3, 5, 5], "3", "wrong_value"),
        ("8-3", [3, 5, 8], "5", "wrong_numbers"),
        ("3+3+5+8", [3, 5, 8], "19", "wrong_numbers"),
        ("35+8", [3, 5, 8], "43", "wrong_numbers"),
        ("43", [3, 5, 8], "43", "wrong_numbers"),
        ("", [3], "3", "bad_expression"),
        ("3 5", [3, 5], "8", "bad_expression"),
        ("3(5)", [3, 5], "15", "bad_expression"),
        ("(3)(5)", [3, 5], "15", "bad_expression"),
        ("3+()", [3], "3", "bad_expression"),
        ("--3", [3], "3", "bad_expression"),
        ("- -3", [3], "3", "bad_expression"),
        ("-(-3)", [3], "3", "bad_expression"),
        ("5-+3", [3, 5], "2", "bad_expression"),
        ("5*-3", [3, 5], "-15", "bad_expression"),
        ("2**5", [2, 5], "32", "bad_expression"),
        ("2* *5", [2, 5], "32", "bad_expression"),
        ("5//2", [2, 5], "2", "bad_expression"),
        ("007+1", [7, 1], "8", "bad_expression"),
        ("3.0+5", [3, 5], "8", "bad_expression"),
        ("1_0+5", [10, 5], "15", "bad_expression"),
        ("3+5#", [3, 5], "8", "bad_expression"),
        ("\u0663+\u0665", [3, 5], "8", "bad_expression"),
        ("\uff13+\uff15", [3, 5], "8", "bad_expression"),
        ("3\u00b2", [3], "9", "bad_expression"),
        ("__import__('os').abort()", [3], "3", "bad_expression"),
        ("(3+5", [3, 5], "8", "bad_expression"),
        ("3+5" + " " * 200, [3, 5], "8", "bad_expression"),
    ],
)
def test_answers_are_graded(expression, numbers, target, label):
    result = grading.grade(answer(expression), numbers, Fraction(target))
    assert (result.label, result.correct) == (label, label == "correct")
    assert result.metrics == {"format": 1.0}
    assert result.value == pytest.approx(1.1 if label == "correct" else 0.1)


@pytest.mark.parametrize(
    "expression",
    [
        "\n3 + 5 * 8\n",
        "\t3\t+\n5\r\n*\u00a08",
        "3 + 5 * 8 = 43",
        "3+5*8=43",
        "3 + 5 * 8\n= 43.0",
        "3 + 5 * 8 = +43",
        "3 + 5 * 8 = 86/2",
        "3 + 5 \u00d7 8",
        "3 + 5 \u00b7 8",
        "3 + 5 \u22c5 8",
        r"3 + 5 \times 8",
        r"3+5\times8",
        r"3+5\cdot 8",
        "[3 + [5 * 8]]",
        "{3} + (5 * [8])",
        r"\left[3 + \left(5 * 8\right)\right]",
        "-[-3 - 5 * 8]",
        "(((((((((((((((((((((((((3+5*8)))))))))))))))))))))))))",
    ],
)
def test_plain_meanings_are_accepted(expression):
    assert grading.grade(answer(expression), [3, 5, 8], Fraction(43)).label == "correct"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("8 \u00f7 2", "4"),
        (r"8 \div 2", "4"),
        ("8 \u2212 2", "6"),
        ("8 \u2013 2", "6"),
        ("2 - 8 = \u22126", "-6"),
        ("2/8 = 1/4", "1/4"),
    ],
)
def test_other_signs_are_read(expression, value):
    assert grading.grade(answer(expression), [2, 8], Fraction(value)).label == "correct"


@pytest.mark.parametrize(
    ("expression", "label"),
    [
        ("3+5=9", "wrong_value"),  # a wrong value behind a right expression
        ("3+5=-8", "wrong_value"),
        ("3*5=8", "wrong_value"),  # a right value behind a wrong expression
        ("8=3+5", "bad_expression"),
        ("3+5=3+5", "bad_expression"),
        ("3+5=8=8", "bad_expression"),
        ("3+5==8", "bad_expression"),
        ("3+5=", "bad_expression"),
        ("=8", "bad_expression"),
        ("3+5=x", "bad_expression"),
        ("3+5 8", "bad_expression"),
        ("3+5, 8", "bad_expression"),
        ("3+5;3+5", "bad_expression"),
        ("3+5 or 4+4", "bad_expression"),
        ("[3+5)", "bad_expression"),
        ("(3+5]", "bad_expression"),
        ("{3+5)", "bad_expression"),
        ("[3,5]", "bad_expression"),
        ("3[5]", "bad_expression"),
        ("[3][5]", "bad_expression"),
        ("[]+3+5", "bad_expression"),
        ("{}+3+5", "bad_expression"),
        ("-[-3]+5", "bad_expression"),
        ("-{-{3}}+5", "bad_expression"),
        ("3\u00d7*5", "bad_expression"),  # ** in disguise
        (r"3*\times5", "bad_expression"),
        ("3*\n*5", "bad_expression"),
        ("3\u00f7\u00f75", "bad_expression"),  # // in disguise
        ("3/\t/5", "bad_expression"),
        ("3\u2212\u22125", "bad_expression"),
        ("3---5", "bad_expression"),
        (r"3\timesx5", "bad_expression"),
        (r"3\left5", "bad_expression"),  # never 35
        (r"3\right 5", "bad_expression"),
        ("3\n5", "bad_expression"),
        ("3\u200b5", "bad_expression"),
        ("3\u200b+5", "bad_expression"),
        ("03+5", "bad_expression"),
        ("00+3+5", "bad_expression"),
        ("3+05", "bad_expression"),
        ("0x3+5", "bad_expression"),
        ("3e0+5", "bad_expression"),
        ("3+5j", "bad_expression"),
        ("3+~5", "bad_expression"),
        ("3^5", "bad_expression"),
        ("3%5", "bad_expression"),
        ("3@5", "bad_expression"),
        ("3<<5", "bad_expression"),
        ("3if 5else 5", "bad_expression"),
        ("3+5 # 1", "bad_expression"),
        ("3+5\\\n", "bad_expression"),
        ("3+'5'", "bad_expression"),
        ("(3:=5)", "bad_expression"),
        ("lambda:8", "bad_expression"),
        ("\u2462+\u2464", "bad_expression"),  # circled digits
        ("\u00b3+5", "bad_expression"),
        ("\u09e9+\u09eb", "bad_expression"),
        ("(" * 98 + "3+5" + ")" * 98, "correct"),
        ("(" * 99 + "3+5" + ")" * 99, "bad_expression"),
        ("3+5" + "+0" * 98, "wrong_numbers"),
        ("<answer>3+5", "correct"),  # the last opening tag counts
        ("3+5<answer>", "bad_expression"),
    ],
)
def test_loopholes_are_closed(expression, label):
    assert grading.grade(answer(expression), [3, 5], Fraction(8)).label == label


@pytest.mark.parametrize(
    ("output", "label", "form"),
    [
        ("x</think>\n<answer>3+5</answer>", "correct", 1.0),
        ("</think>\n<answer>3+5</answer> \n\t", "correct", 1.0),
        ("a\nb</think>\n<answer>8</answer>", "wrong_numbers", 1.0),
        ("x</think><answer>3+5</answer>", "correct", 0.6),
        ("x</think>\n\n<answer>3+5</answer>", "correct", 0.6),
        ("x</think>\n<answer>3+5</answer> is it", "correct", 0.6),
        ("<think>x</think>\n<answer>3+5</answer>", "correct", 0.6),
        ("x</think>\n<answer>1</answer>\n<answer>3+5</answer>", "correct", 0.6),
        ("x</think>\n<answer>3+5</answer>\n<answer>1</answer>", "wrong_numbers", 0.6),
        ("x</think>\n<answer>3+5</answer>\n<answer>1", "correct", 0.6),
        ("<answer>3+5</answer>", "correct", 0.5),
        ("x</think>\n<answer>3+5", "no_answer", 0.1),
        ("x</think>\n3+5</answer>", "no_answer", 0.1),
        ("x</think>\n</answer>3+5<answer>", "no_answer", 0.1),
        ("3+5", "no_answer", 0.0),
        ("", "no_answer", 0.0),
    ],
)
def test_form_is_graded(output, label, form):
    result = grading.grade(output, [3, 5], Fraction(8))
    assert result.label == label
    assert result.metrics["format"] == pytest.approx(form)
    assert result.value == pytest.approx(0.1 * form + (label == "correct"))


@pytest.mark.parametrize("expression", ["1/0", "1/(2-2)", "0/0"])
def test_evaluate_says_when_it_divides_by_zero(expression):
    with pytest.raises(ZeroDivisionError):
        grading.evaluate(expression)


class Exact:
    """Independent oracle: Python's own operators on exact numbers."""

    def __init__(self, value):
        self.value = Fraction(value)

    def __add__(self, other):
        return Exact(self.value + other.value)

    def __sub__(self, other):
        return Exact(self.value - other.value)

    def __mul__(self, other):
        return Exact(self.value * other.value)

    def __truediv__(self, other):
        return Exact(self.value / other.value)


def oracle(expression):
    """Return the value of an expression made by these tests, or ``None`` for a division by zero."""
    try:
        return eval(re.sub(r"(\d+)", r"Exact(\1)", expression), {"Exact": Exact}).value
    except ZeroDivisionError:
        return None


leaves = st.integers(0, 99).map(lambda number: (str(number), [number]))


def joined(children):
    def join(left, sign, right, gap, wrap):
        text = f"{left[0]}{gap}{sign}{gap}{right[0]}"
        return (f"({text})" if wrap else text), left[1] + right[1]

    return st.builds(join, children, st.sampled_from("+-*/"), children, st.sampled_from(["", " "]), st.booleans())


@given(st.recursive(leaves, joined, max_leaves=8), st.integers(-3, 3))
def test_agrees_with_the_oracle(expression, off):
    text, numbers = expression
    value = oracle(text)
    if value is None:
        with pytest.raises(ZeroDivisionError):
            grading.evaluate(text)
        assert grading.grade(answer(text), numbers, Fraction(off)).label == "wrong_value"
    else:
        assert grading.evaluate(text) == value
        result = grading.grade(answer(text), numbers, value + Fraction(off))
        assert result.label == ("wrong_value" if off else "correct")
        assert grading.grade(answer(text), [*numbers, 1], value).label == "wrong_numbers"


pieces = st.sampled_from(["<think>", "</think>", "\n", "<answer>", "</answer>", "(", ")", "3", "-", "**", "/", " "])


@settings(max_examples=300)
@given(st.one_of(st.text(), st.lists(pieces).map("".join), st.text("0123456789+-*/() ").map(answer)))
def test_never_raises(output):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # parsing model output must not chat either
        result = task.reward(output, {"numbers": [3, 5], "target": "8"})
    assert 0.0 <= result.value <= 1.1
    assert result.correct == (result.label == "correct") == (result.value >= 1.0)


@pytest.mark.parametrize(
    "output",
    [
        "(" * 2_000_000,
        answer("(" * 2_000_000),
        answer("(" * 99 + "3" + ")" * 99),
        answer("(" * 199),
        answer("-" * 199 + "3"),
        answer("9" * 200),
        answer("9" * 2_000_000),
        answer("9*" * 99 + "9"),
        answer("1" + "/9" * 99),
        answer(" " * 2_000_000),
        answer("9" + "**9" * 60),
        answer("[" * 2_000_000),
        answer("\\times" * 400_000),
        answer("3+5=" + "8" * 2_000_000),
        answer("3+5=" + "8" * 190),
        "<answer>" * 250_000,
        "</answer>" * 250_000,
        "<answer></answer>" * 120_000,
        "<think>" * 250_000 + "</think>\n<answer>" * 120_000,
        "</think>\n<answer>" + "\n" * 2_000_000,
        "\ud800\x00" * 500_000,
    ],
    ids=lambda text: f"{text[:24]!r}...{len(text)}",
)
def test_hostile_text_is_cheap(output):
    with within(0.5):
        assert not grading.grade(output, [3, 5], Fraction(8)).correct
