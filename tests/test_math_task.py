"""The task ``math``: boxes, answers that are the same, and text that means harm."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esplug import Reward
from esplug_tasks_math import INSTRUCTION, collate, last_boxed, reward, same_answer, template


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{7}.", "7"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ x }", " x "),
        (r"\boxed{}", ""),
        (r"\boxed{a\{b}", None),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{a {b} {c {d}}} }", "a {b} {c {d}}"),
        ("{" * 5 + r"\boxed{3}", "3"),
        (r"\boxed 5", None),
        ("7", None),
        ("", None),
    ],
)
def test_the_last_closed_box_counts(text, boxed) -> None:
    assert last_boxed(text) == boxed


@given(st.text("ab{}\\", max_size=30), st.text("xy 12", max_size=10))
def test_a_box_is_found_behind_any_text(before, answer) -> None:
    assert last_boxed(f"{before}\\boxed{{{answer}}}") == answer


@pytest.mark.parametrize(
    ("given_answer", "expected"),
    [
        ("42", "42"),
        (" 42 ", "42"),
        ("$42$", "42"),
        ("42.0", "42"),
        ("042", "42"),
        ("+42", "42"),
        ("1,000", "1000"),
        ("1,234,567", "1234567"),
        ("0.5", "1/2"),
        (".5", "0.50"),
        ("3.", "3"),
        ("-1/2", "-0.5"),
        (r"\frac{1}{2}", "0.5"),
        (r"-\frac{3}{6}", r"\dfrac{-1}{2}"),
        (r"\tfrac{4}{2}", "2"),
        ("x + 1", "x+1"),
        (r"\frac{1}{0}", r"\frac{1}{0}"),
    ],
)
def test_equal_answers(given_answer, expected) -> None:
    assert same_answer(given_answer, expected)
    assert same_answer(expected, given_answer)


@pytest.mark.parametrize(
    ("given_answer", "expected"),
    [
        ("42", "43"),
        ("42", "-42"),
        ("1,00", "100"),
        ("0.3333", "1/3"),
        ("1/0", "2/0"),
        (r"\frac{1}{0}", r"\frac{2}{0}"),
        ("x", "y"),
        ("x+1", "1+x"),
        ("", "0"),
        ("1/2/3", "1/6"),
        ("1e3", "1000"),
        ("inf", "-inf"),
    ],
)
def test_different_answers(given_answer, expected) -> None:
    assert not same_answer(given_answer, expected)
    assert not same_answer(expected, given_answer)


@given(st.fractions(max_denominator=10**6), st.integers(1, 50))
def test_a_fraction_is_the_same_however_it_is_written(value: Fraction, factor) -> None:
    top, bottom = value.numerator, value.denominator
    forms = [
        f"{top}/{bottom}",
        f"{top * factor}/{bottom * factor}",
        rf"\frac{{{top}}}{{{bottom}}}",
        rf"\dfrac{{{top * factor}}}{{{bottom * factor}}}",
    ]
    assert all(same_answer(form, other) for form in forms for other in forms)
    assert not any(same_answer(form, f"{top + 1}/{bottom}") for form in forms)


@given(st.integers(-(10**15), 10**15))
def test_thousands_may_be_separated(value) -> None:
    assert same_answer(f"{value:,}", str(value))
    assert same_answer(f"{value:,}.00", str(value))
    assert not same_answer(f"{value:,}", str(value + 1))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (r"\boxed{7}", Reward(1.0, "correct", True)),
        (r"it is 7, or \boxed{7.0}", Reward(1.0, "correct", True)),
        (r"\boxed{8}", Reward(0.0, "wrong", False)),
        (r"\boxed{7} no, \boxed{8}", Reward(0.0, "wrong", False)),
        ("7", Reward(0.0, "no_box", False)),
        ("", Reward(0.0, "no_box", False)),
    ],
)
def test_reward(output, expected) -> None:
    assert reward(output, "7") == expected


@given(st.text(max_size=200), st.text(max_size=20))
def test_no_text_makes_it_raise(output, target) -> None:
    assert reward(output, target).value in (0.0, 1.0)
    boxed = reward(f"\\boxed{{{output}}}", target)
    assert boxed.correct == (boxed.value == 1.0) == (boxed.label == "correct")


DIGITS = "9" * 300_000


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 100_000,
        r"\boxed{" + "{" * 1_000_000,
        r"\boxed{" + "}" * 1_000_000,
        r"\boxed{" + "{}" * 500_000 + "}",
        rf"\boxed{{{DIGITS}}}",
        r"\boxed{" + "1" * 9_000 + "}",
        r"\boxed{" + "1," * 4_000 + "}",
        r"\boxed{" + " " * 9_000 + "x}",
        r"\boxed{" + "9" * 29 + "." + "9" * 29 + "/" + "9" * 29 + "}",
        r"\boxed{" + r"\frac{1}" * 1_000 + "}",
        r"\boxed{1e999999999}",
        r"\boxed{9**9**9**9}",
    ],
    ids=lambda text: text[:14] + "...",
)
def test_hostile_text_is_graded_in_bounded_time(text) -> None:
    started = time.process_time()
    assert reward(text, "12").value == 0.0
    assert same_answer(text[:10_000], "12") is False
    assert time.process_time() - started < 1.0


def test_rows_become_questions_and_targets_as_text() -> None:
    rows = [{"problem": "1+1?", "answer": 2, "more": None}, {"problem": "x?", "answer": "y"}]
    assert collate(rows) == (["1+1?", "x?"], ["2", "y"])


def test_the_question_is_asked_in_chat_and_names_the_box() -> None:
    messages = template("1+1?")
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"] == INSTRUCTION
    assert "\\boxed{}" in INSTRUCTION
    assert messages[1]["content"] == "1+1?"


@pytest.mark.parametrize(("given_answer", "expected"), [("1 2", "12"), ("51/2", "5 1/2")])
def test_numbers_side_by_side_are_not_one_number(given_answer, expected) -> None:
    assert not same_answer(given_answer, expected)
