"""The countdown task: grading against an independent oracle, the puzzles, the committed data, the hooks."""

import copy
import itertools
import json
import pickle
import random
import re
import warnings
from fractions import Fraction
from pathlib import Path

import pluggy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import esplug_tasks_countdown as task
from esplug import Reward
from esplug.hookspecs import PROJECT, TaskSpec
from esplug_tasks_countdown import columns, grading, prompts, puzzles
from tests.helpers.timing import within

DATASETS = Path(__file__).parents[2] / "datasets"
SPLITS = [(level, split) for level in puzzles.LEVELS for split in ("train", "eval")]
OPTIONS = {"shots": 0, "level": "standard", "think_words": 0}


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
    ("thought", "words", "form"),
    [
        ("", 0, 1.0),
        (" \n", 0, 1.0),
        ("", 1, 0.5),
        (" \n\t ", 1, 0.5),
        ("...", 1, 0.5),
        ("so", 1, 1.0),
        ("3 + 5 makes 8", 4, 1.0),
        ("3 + 5 makes 8", 5, 0.5),
        ("so so so so so", 2, 0.5),
    ],
)
def test_a_think_block_can_be_required(hooks, thought, words, form):
    _, (target,) = hooks.collate(batch=[ROW], options=OPTIONS | {"think_words": words})
    result = hooks.reward(model_output=f"{thought}</think>\n<answer>3+5</answer>", target=target, options=OPTIONS)
    assert result.correct
    assert result.metrics["format"] == pytest.approx(form)


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


# --- columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [[3, 5], (3, 5), ["3", "5"], [3.0, 5], "[3, 5]", " [3,5] ", '["3", "5"]', "(3, 5)"])
def test_numbers_are_read_from_lists_and_text(value):
    assert columns.numbers(value) == [3, 5]


@pytest.mark.parametrize(
    "value",
    [None, 3, [], "", "[]", "[3, 5", "3", [3.5], [-3], [True], ["x"], "os.abort()", "[" * 9999, ["\u0663"], [None]],
)
def test_malformed_numbers_are_named(value):
    with pytest.raises(ValueError, match=r"column 'numbers': .* is not a list of whole numbers"):
        columns.numbers(value)


@pytest.mark.parametrize(
    ("value", "exact"),
    [
        (24, "24"),
        ("24", "24"),
        (" 24 ", "24"),
        (24.0, "24"),
        (0.1, "1/10"),
        ("7/3", "7/3"),
        (-2, "-2"),
        ("2.5e3", "2500"),
    ],
)
def test_targets_are_exact(value, exact):
    assert columns.target(value) == Fraction(exact)
    assert columns.target(str(columns.target(value))) == Fraction(exact)


@pytest.mark.parametrize(
    "value", [None, "", "x", "nan", float("inf"), True, "1/0", "1e999999999", "\u0663", "3 + 5", [3]]
)
def test_malformed_targets_are_named(value):
    with pytest.raises(ValueError, match=r"column 'target': .* is not a number"):
        columns.target(value)


# --- puzzles and data --------------------------------------------------------------------------------------


def solved(row):
    target = {"numbers": row["numbers"], "target": str(row["target"])}
    return task.reward(answer(row["solution"]), target) == Reward(1.1, "correct", True, {"format": 1.0})


@pytest.mark.parametrize(("level", "split"), SPLITS)
def test_generated_rows_are_solvable_puzzles_of_their_level(level, split):
    rows = puzzles.rows(level, split)
    assert len(rows) == {"standard": {"train": 200, "eval": 2000}, "easy": {"train": 5000, "eval": 500}}[level][split]
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(map(solved, rows))
    for row in rows:
        if level == "easy":
            assert len(row["numbers"]) == 3
            assert all(1 <= number <= 30 for number in row["numbers"])
            assert [int(part) for part in re.split(r" [+-] ", row["solution"])] == row["numbers"]
            assert row["target"] >= 0
        else:
            assert len(row["numbers"]) in (3, 4)
            assert all(1 <= number <= 99 for number in row["numbers"])
            assert 1 <= row["target"] <= 99


def test_no_puzzle_occurs_twice_in_a_split_or_in_both_splits_or_as_a_worked_example():
    keys = {pair: [puzzle.key for puzzle in puzzles.generate(*pair)] for pair in SPLITS}
    assert all(len(set(found)) == len(found) for found in keys.values())
    train, evaluation = (
        {key for (_, split), found in keys.items() if split == which for key in found} for which in ("train", "eval")
    )
    assert not train & evaluation  # whatever the level
    assert not {puzzles.Puzzle(*example).key for example in prompts.EXAMPLES} & (train | evaluation)


def test_generator_is_the_same_every_time_and_leaves_the_global_random_state_alone():
    state = random.getstate()
    first = puzzles.generate("easy", "eval")
    puzzles.generate.cache_clear()
    assert puzzles.generate("easy", "eval") == first
    assert random.getstate() == state


def test_generator_rejects_an_unknown_level():
    with pytest.raises(ValueError, match="level must be one of standard, easy, not 'hard'"):
        puzzles.generate("hard", "train")


@pytest.mark.parametrize(
    ("folder", "name", "split"),
    [("train", "train", "train"), ("evaluation_suite", "countdown_eval", "eval")],
)
def test_committed_data_is_the_generators_output(folder, name, split):
    from datasets import load_from_disk

    data = load_from_disk(str(DATASETS / folder / "countdown"))
    assert list(data) == [name]
    assert data[name].to_list() == puzzles.rows("standard", split) == puzzles.build()[split][name]


# --- hooks -------------------------------------------------------------------------------------------------


@pytest.fixture
def hooks():
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(TaskSpec)
    manager.register(task)
    manager.check_pending()
    return manager.hook


ROW = {"context": "Make 8.\n<think>", "numbers": "[3, 5]", "target": "8"}


def test_options_and_defaults(hooks):
    assert hooks.options(given={}) == OPTIONS
    assert hooks.defaults(options=OPTIONS) == {"stop": ["</answer>"]}
    assert hooks.defaults(options=OPTIONS | {"shots": 1}) == {"stop": ["</answer>"], "max_tokens": 64}


@pytest.mark.parametrize("shots", [-1, 9])
def test_too_many_shots_are_rejected(hooks, shots):
    options = OPTIONS | {"shots": shots}
    with pytest.raises(ValueError, match=rf"^shots must be between 0 and 8, not {shots}$"):
        hooks.defaults(options=options)
    with pytest.raises(ValueError, match=r"^shots must be"):
        hooks.collate(batch=[ROW], options=options)


def test_negative_think_words_are_rejected(hooks):
    with pytest.raises(ValueError, match=r"^think_words must be 0 or more, not -1$"):
        hooks.defaults(options=OPTIONS | {"think_words": -1})


def test_own_rows_are_generated_and_files_are_read_by_esplug(hooks):
    assert hooks.load_rows(split="train", path=None, options=OPTIONS) == puzzles.rows("standard", "train")
    easy = hooks.load_rows(split="eval", path=None, options=OPTIONS | {"level": "easy"})
    assert easy == {"countdown_eval": puzzles.rows("easy", "eval")}
    assert hooks.load_rows(split="train", path="rows.csv", options=OPTIONS | {"level": "easy"}) is None


def test_zero_shot_asks_with_the_rows_context(hooks):
    before = copy.deepcopy(ROW)
    questions, targets = hooks.collate(batch=[ROW, ROW], options=OPTIONS)
    assert questions == ["Make 8.\n<think>"] * 2
    assert targets == [{"numbers": [3, 5], "target": "8"}] * 2
    assert before == ROW
    assert pickle.loads(pickle.dumps(targets)) == json.loads(json.dumps(targets)) == targets
    assert hooks.template(question=questions[0], options=OPTIONS) == questions[0]


@pytest.mark.parametrize("level", puzzles.LEVELS)
def test_zero_shot_prompt_is_complete(hooks, level):
    row = puzzles.rows(level, "train")[0]
    (question,), _ = hooks.collate(batch=[row], options=OPTIONS)
    assert question.endswith("\n<think>")
    assert ", ".join(map(str, row["numbers"])) in question
    assert all(
        word in question for word in (str(row["target"]), "exactly once", "+, -, * and /", "</think>", "</answer>")
    )


@pytest.mark.parametrize("shots", range(1, 9))
def test_worked_examples_earn_the_full_reward(hooks, shots):
    (question,), _ = hooks.collate(batch=[ROW], options=OPTIONS | {"shots": shots})
    *examples, last = question.split("\n\n")
    assert len(examples) == shots
    assert last.endswith("<think>")
    assert "3, 5" in last
    assert "8" in last
    for text, (numbers, target, _) in zip(examples, prompts.EXAMPLES, strict=False):
        head, completion = text.split("<think>")
        assert [int(digits) for digits in re.findall(r"\d+", head)] == [*numbers, target]
        result = hooks.reward(
            model_output=completion, target={"numbers": list(numbers), "target": str(target)}, options=OPTIONS
        )
        assert result == Reward(1.1, "correct", True, {"format": 1.0})


def test_worked_examples_differ_and_only_add_and_subtract():
    assert len({puzzles.Puzzle(*example).key for example in prompts.EXAMPLES}) == 8
    for numbers, _, solution in prompts.EXAMPLES:
        assert len(numbers) == 3
        assert set(solution) <= set("0123456789+- ")


@pytest.mark.parametrize("column", ["context", "numbers", "target"])
def test_a_missing_column_is_a_key_error(hooks, column):
    row = {name: value for name, value in ROW.items() if name != column}
    with pytest.raises(KeyError, match=column):
        hooks.collate(batch=[row], options=OPTIONS)


@pytest.mark.parametrize("column", ["numbers", "target"])
@pytest.mark.parametrize("shots", [0, 1])
def test_a_malformed_column_is_named(hooks, column, shots):
    with pytest.raises(ValueError, match=f"column '{column}': 'many' is not"):
        hooks.collate(batch=[ROW | {column: "many"}], options=OPTIONS | {"shots": shots})


def test_collate_and_reward_work_together_on_every_committed_kind_of_row(hooks):
    for level, shots in itertools.product(puzzles.LEVELS, (0, 2)):
        rows = puzzles.rows(level, "eval")[:50]
        _, targets = hooks.collate(batch=rows, options=OPTIONS | {"shots": shots})
        for row, target in zip(rows, targets, strict=True):
            assert hooks.reward(model_output=answer(row["solution"]), target=target, options=OPTIONS).correct
