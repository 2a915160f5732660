"""The countdown task: its columns, the puzzles, the committed data, the hooks."""

import copy
import itertools
import json
import pickle
import random
import re
from fractions import Fraction
from pathlib import Path

import pluggy
import pytest

import esplug_tasks_countdown as task
from esplug import Reward
from esplug.hookspecs import PROJECT, TaskSpec
from esplug_tasks_countdown import columns, prompts, puzzles

DATASETS = Path(__file__).parents[2] / "datasets"
SPLITS = [(level, split) for level in puzzles.LEVELS for split in ("train", "eval")]
OPTIONS = {"shots": 0, "level": "standard", "think_words": 0}


def answer(expression: str) -> str:
    return f"thinking</think>\n<answer>{expression}</answer>"


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
