"""The tasks of several turns: their replies and rewards, whatever the model writes."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esplug_tasks_games import arithmetic, calculator, number_guessing
from esplug_tasks_games.number_guessing import turn
from tests.helpers.timing import within

GAME = {"low": 21, "high": 36, "secret": 30}


def said(*texts: str) -> list[dict[str, str]]:
    """The conversation with these answers and replies in turn, after a prompt."""
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(("prompt", *texts))]


# --- number-guessing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (" 28\n", "higher"),
        ("28", "higher"),
        (" 31\n", "lower"),
        (" 999", "lower"),
        (" 30\n", None),
        ("", None),
        (" thirty", None),
        (" 30 or 31\n", None),
        (" -30", None),
        (" 3.0", None),
        (" ٣٠", None),
        ("9" * 1000, None),
    ],
)
def test_hints(answer, hint) -> None:
    reply = turn(said(answer), GAME)
    expected = None if hint is None else [{"role": "user", "content": f"Hint: {hint}\nGuess:"}]
    assert reply == expected


@pytest.mark.parametrize(
    ("guesses", "value", "label"),
    [
        ([" 30\n"], 1.0, "found"),
        ([" 28\n", " 32\n", " 30\n"], 1.0, "found"),
        ([" 28\n"], 0.5 * (1 - 3 / 4), "not_found"),  # 29 to 36 are left, half of 16
        ([" 28\n", " 33\n"], 0.5 * 0.5, "not_found"),  # 29 to 32
        ([" 28\n", " 28\n"], 0.5 * (1 - 3 / 4), "not_found"),  # a guess that tells nothing new
        ([" 10\n"], 0.0, "not_found"),
        ([" 28\n", "x"], 0.5 * (1 - 3 / 4), "no_number"),
        (["x"], 0.0, "no_number"),
    ],
)
def test_reward_of_a_game(guesses, value, label) -> None:
    messages = said(*(text for guess in guesses for text in (guess, "Hint")))[:-1]
    reward = number_guessing.reward(guesses[-1], GAME, messages)
    assert (reward.value, reward.label) == (pytest.approx(value), label)
    assert reward.correct == (label == "found")


def test_halving_finds_every_secret_within_the_turns_of_the_defaults() -> None:
    task_options = number_guessing.options()
    most = number_guessing.defaults(task_options)["max_turns"]
    for row in number_guessing.load_rows("train", None, task_options)[:64]:
        low, high, messages = row["low"], row["high"], said()
        for _ in range(most):
            guess = (low + high) // 2
            messages.append({"role": "assistant", "content": f" {guess}\n"})
            reply = turn(messages, row)
            if reply is None:
                break
            low, high = (guess + 1, high) if "higher" in reply[0]["content"] else (low, guess - 1)
            messages += reply
        assert number_guessing.reward(messages[-1]["content"], row, messages).value == 1.0


def test_held_out_ranges_are_not_trained_on() -> None:
    task_options = number_guessing.options()
    train = number_guessing.load_rows("train", None, task_options)
    held_out = number_guessing.load_rows("eval", None, task_options)["held_out"]
    assert len(held_out) == 200
    ranges = [{(row["low"], row["high"]) for row in rows} for rows in (train, held_out)]
    assert not ranges[0] & ranges[1]
    assert number_guessing.EXAMPLE[0] not in ranges[0] | ranges[1]
    _, targets = number_guessing.collate(train[:1])
    assert number_guessing.template((targets[0]["low"], targets[0]["high"])).endswith("\nGuess:")


@pytest.mark.parametrize("size", range(2, number_guessing.LARGEST_SIZE + 1))
def test_every_size_has_games_to_train_on_and_held_out_ones(size) -> None:
    task_options = number_guessing.options() | {"size": size}
    assert number_guessing.load_rows("train", None, task_options)
    assert number_guessing.load_rows("eval", None, task_options)["held_out"]


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({"size": 1}, "size must be between"),
        ({"size": 95}, "size must be between"),
        ({"eval_rows": 0}, "eval_rows must be"),
    ],
)
def test_options_out_of_range_are_refused(given_options, message) -> None:
    with pytest.raises(ValueError, match=message):
        number_guessing.load_rows("train", None, number_guessing.options() | given_options)


@pytest.mark.parametrize("row", [{"low": 5, "high": 5, "secret": 5}, {"low": 5, "high": 9, "secret": 10}])
def test_impossible_games_are_refused(row) -> None:
    with pytest.raises(ValueError, match="low <= secret <= high"):
        number_guessing.collate([row])


@pytest.mark.parametrize("secret", ["x", None, 2.5, float("inf"), [3], ""])
def test_a_secret_that_is_no_whole_number_is_refused(secret) -> None:
    with pytest.raises(ValueError, match=r"column 'secret': .* is not a whole number"):
        number_guessing.collate([{"low": 1, "high": 5, "secret": secret}])


def test_numbers_of_any_type_are_taken() -> None:
    _, (target,) = number_guessing.collate([{"low": "1", "high": 5.0, "secret": 3}])
    assert target == {"low": 1, "high": 5, "secret": 3}


# --- calculator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("37*48", "1776"),
        (" 2 + 3 * (4 - 1) ", "11"),
        ("-5*-3", "15"),
        ("1/3", "0.3333"),
        ("-2/3", "-0.6667"),
        ("0.1+0.2", "0.3"),
        ("10/4", "2.5"),
        ("7/-7", "-1"),
    ],
)
def test_arithmetic_is_exact(expression, shown) -> None:
    assert arithmetic.shown(arithmetic.evaluate(expression)) == shown


HOSTILE = [
    *(
        "",
        " ",
        "1/0",
        "2**9999",
        "9//2",
        "1e9",
        "0x10",
        "a",
        "1_000",
        "(1",
        "1+",
        "1 2",
        "()",
        "1,2",
        "1=1",
        "1;2",
        "~1",
    ),
    *(
        "__import__('os')",
        "(" * 100,
        "1" * 13,
        "9" * 5000,
        "1+" * 60 + "1",
        "(1)(2)",
        "[1]",
        "1 if 1 else 2",
        "٣",
        "1..2",
    ),
]


@pytest.mark.parametrize("expression", HOSTILE, ids=lambda text: text[:12] or "empty")
def test_anything_else_is_refused(expression) -> None:
    with pytest.raises(ValueError, match=r"not an expression|division|digits"):
        arithmetic.evaluate(expression)


@given(st.text(alphabet="0123456789.+-*/() ", max_size=120))
def test_no_text_of_these_characters_does_anything_else(expression) -> None:
    try:
        value = arithmetic.evaluate(expression)
    except ValueError:
        return
    assert isinstance(value, Fraction)
    arithmetic.shown(value)


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ("<calc>37*48</calc>", "1776"),
        ("I use it: <calc> 37 * 48 </calc>\n", "1776"),
        ("<calc>1</calc><calc>2</calc>", "error: not an expression of numbers, + - * / and parentheses"),
        ("<calc>1/0</calc>", "error: division by zero"),
        ("<calc>import os</calc>", "error: not an expression of numbers, + - * / and parentheses"),
        ("<calc>1</calc> and so on", None),
        ("<answer>3</answer>", None),
        ("<answer>3</answer><calc>1</calc>", None),
        ("<calc>1", None),
        ("", None),
        ("<calc>" * 100_000, None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_calculator_replies_to_a_call(answer, result) -> None:
    expected: Any = None if result is None else [{"role": "user", "content": f"\n<result>{result}</result>\n"}]
    assert calculator.turn(said(answer)) == expected


@pytest.mark.parametrize(
    ("answer", "value", "label"),
    [
        ("<answer>1776</answer>", 1.0, "correct"),
        ("<answer> 1,776 </answer>", 1.0, "correct"),
        ("<answer>1776.0</answer>", 1.0, "correct"),
        ("<answer>1</answer><answer>1776</answer>", 1.0, "correct"),
        ("<answer>01776</answer>", 1.0, "correct"),
        ("<answer>1777</answer>", 0.2, "wrong"),
        ("<answer>1776000000000000</answer>", 0.2, "wrong"),
        ("<answer>37*48</answer>", 0.1, "not_a_number"),
        ("1776", 0.1, "no_answer"),
        ("", 0.1, "no_answer"),
    ],
)
def test_reward_after_a_call(answer, value, label) -> None:
    messages = said("<calc>37*48</calc>", "\n<result>1776</result>\n", answer)
    reward = calculator.reward(answer, "1776", messages)
    assert (reward.value, reward.label, reward.metrics) == (value, label, {"calls": 1})
    without = calculator.reward(answer, "1776", said(answer))
    assert without.value == (0.0 if value == 0.1 else value)


def test_an_unfinished_answer_of_blanks_is_graded_fast() -> None:
    with within(1):
        assert calculator.reward("<answer>" + " " * 9_000, "7", said("")).label == "no_answer"


def test_questions_are_answered_right_and_held_out() -> None:
    train = calculator.load_rows("train", None, calculator.options())
    held_out = calculator.load_rows("eval", None, calculator.options())["held_out"]
    assert len(held_out) == 200
    assert not {row["question"] for row in train} & {row["question"] for row in held_out}
    for row in held_out[:50]:
        expression = row["question"].removeprefix("What is ").removesuffix("?")
        value = arithmetic.evaluate(expression)
        assert calculator.reward(f"<answer>{arithmetic.shown(value)}</answer>", row["answer"], said("")).value == 1.0
    assert isinstance(calculator.template("What is 1+1?", {"shots": 0}), list)
    text = calculator.template("What is 1+1?", {"shots": 2})
    assert text.count("<calc>") == 2
    assert text.endswith("Question: What is 1+1?\n")
    with pytest.raises(ValueError, match="shots must be between 0 and 4"):
        calculator.defaults({"shots": 5})
