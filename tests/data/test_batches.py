"""A task's rows become batches."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esplug import hookimpl
from esplug.data.batches import Batches, load_batch_source, load_eval_splits
from esplug.errors import UserError
from esplug.plugins import PluginInfo
from esplug.plugins.loading import relay
from esplug.plugins.task import Task
from tests.helpers.rows import ROWS, Toy, task, write, write_dict


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 2**64 - 1))
def test_every_row_comes_once_a_pass_and_passes_are_joined(n_rows, batch_size, seed) -> None:
    prompts, targets = [f"p{i}" for i in range(n_rows)], list(range(n_rows))
    batches = list(islice(Batches(prompts, targets, batch_size, seed), 12))
    size = min(batch_size, n_rows)
    assert {len(questions) for questions, _ in batches} == {size}
    assert {len(answers) for _, answers in batches} == {size}
    pairs = [pair for batch in batches for pair in zip(*batch, strict=True)]
    assert all(prompt == f"p{target}" for prompt, target in pairs)
    order = [target for _, target in pairs]
    for start in range(0, len(order) - n_rows + 1, n_rows):
        assert sorted(order[start : start + n_rows]) == targets
    left = Counter(order[len(order) // n_rows * n_rows :])
    assert not left or max(left.values()) == 1


def test_the_seed_alone_decides_the_order() -> None:
    rows = list(range(50))

    def order(seed: int) -> list[int]:
        return [target for _, targets in islice(Batches(rows, rows, 10, seed), 10) for target in targets]

    assert order(0) == order(0)
    assert len({tuple(order(seed)) for seed in range(5)}) == 5
    assert order(0)[:50] != rows
    assert order(0)[:50] != order(0)[50:], "the second pass is shuffled anew"


def test_every_iterator_starts_at_the_beginning() -> None:
    batches = Batches(list("abcdefgh"), list(range(8)), 3, seed=4)
    first = iter(batches)
    head = [next(first) for _ in range(4)]
    assert list(islice(batches, 4)) == head


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "dataset"])
def test_rows_become_training_batches(kind, tmp_path) -> None:
    batches = load_batch_source(task(), str(write(tmp_path, kind)), batch_size=100, seed=1)
    assert batches.batch_size == 3
    questions, targets = next(iter(batches))
    assert sorted(zip(questions, targets, strict=True)) == sorted((row["q"], row["a"]) for row in ROWS)


def test_training_takes_the_split_train_of_several(tmp_path) -> None:
    path = write_dict(tmp_path / "d", test=ROWS[:1], train=ROWS[1:])
    assert sorted(load_batch_source(task(), str(path), 9, 0).targets) == [-4, 23]


def test_training_takes_the_only_split_whatever_its_name(tmp_path) -> None:
    assert load_batch_source(task(), str(write_dict(tmp_path / "d", test=ROWS[:2])), 9, 0).targets == [1, 23]


def test_training_needs_a_split_train_among_several(tmp_path) -> None:
    path = write_dict(tmp_path / "d", easy=ROWS, hard=ROWS)
    with pytest.raises(UserError, match=r"--train-dataset .*no split 'train' among easy, hard"):
        load_batch_source(task(), str(path), 9, 0)


def test_evaluation_takes_every_split_up_to_the_limit(tmp_path) -> None:
    path = write_dict(tmp_path / "d", easy=ROWS[:1], hard=ROWS)
    assert load_eval_splits(task(), str(path), limit=2) == {
        "easy": [(["one"], [1])],
        "hard": [(["one", "zwei, drei"], [1, 23])],
    }
    assert load_eval_splits(task(), str(path), limit=None)["hard"] == [([r["q"] for r in ROWS], [1, 23, -4])]


def test_a_task_brings_its_own_rows() -> None:
    own = task({"train": ROWS[:2], "eval": {"a": ROWS[:1], "b": ROWS}})
    assert load_batch_source(own, None, 9, 0).targets == [1, 23]
    assert [*load_eval_splits(own, None, None)] == ["a", "b"]
    assert load_eval_splits(task({"eval": ROWS}), None, 1) == {"eval": [(["one"], [1])]}


def test_a_task_without_data_of_its_own_asks_for_some() -> None:
    with pytest.raises(UserError, match=r"'toy'.*--train-dataset"):
        load_batch_source(task(), None, 9, 0)
    with pytest.raises(UserError, match=r"'toy'.*--eval-dataset"):
        load_eval_splits(task(), None, None)


def test_training_takes_one_source(tmp_path) -> None:
    path = write(tmp_path, "jsonl")
    with pytest.raises(UserError, match=r"^--train-dataset .*,.*: training takes one data set, not 2; "):
        load_batch_source(task(), f"{path},{path}", 9, 0)


def test_only_the_named_splits_are_kept_and_collated(tmp_path) -> None:
    path = str(write_dict(tmp_path / "d", aime=ROWS, amc=ROWS[:1], bad=[{"x": 1}]))
    assert load_eval_splits(task(), path, None, only=["amc", "aime"]) == {
        "aime": [([row["q"] for row in ROWS], [1, 23, -4])],
        "amc": [(["one"], [1])],
    }


def test_an_unknown_split_is_one_line(tmp_path) -> None:
    path = str(write_dict(tmp_path / "d", aime=ROWS, amc=ROWS))
    with pytest.raises(UserError) as caught:
        load_eval_splits(task(), path, None, only=["amcc"])
    assert str(caught.value) == "--splits amcc: no such split; did you mean 'amc'? (splits: aime, amc)"
    with pytest.raises(UserError) as caught:
        load_eval_splits(task(), path, None, only=["zzz"])
    assert str(caught.value) == "--splits zzz: no such split (splits: aime, amc)"


def test_a_task_is_asked_for_each_source(tmp_path) -> None:
    class Reader(Toy):
        @hookimpl
        def load_rows(self, path):
            return {"own": ROWS[:1]} if path.endswith(".own") else None

    info = PluginInfo("task", "toy", "esplug-tasks-toy", "1.0", "toy")
    reader = Task.wrap(info, relay(Reader(), info))
    splits = load_eval_splits(reader, f"{write(tmp_path, 'jsonl')},a.own,b.own", 1)
    assert list(splits) == ["rows", "a.own/own", "b.own/own"]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "dataset"])
def test_no_rows_is_an_error(kind, tmp_path) -> None:
    import pyarrow
    import pyarrow.parquet

    import datasets

    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"q": []}), path)
    elif kind == "dataset":
        datasets.Dataset.from_dict({"q": ["x"]}).select([]).save_to_disk(path)
    else:
        path.write_text({"json": "[]", "jsonl": "\n", "csv": "q,a\n"}[kind])
    with pytest.raises(UserError, match=r"--train-dataset .*: the data set has no rows"):
        load_batch_source(task(), str(path), 9, 0)
    with pytest.raises(UserError, match=r"--eval-dataset .*: the data set has no rows"):
        load_eval_splits(task(), str(path), None)


def test_a_missing_column_names_what_there_is(tmp_path) -> None:
    path = write(tmp_path, "jsonl", [{"q": "x", "answer": 1}])
    with pytest.raises(UserError) as caught:
        load_batch_source(task(), str(path), 9, 0)
    assert str(caught.value) == (
        f"--train-dataset {path}, split 'rows': task 'toy' needs the column 'a', which row 1 of the batch lacks; "
        "columns found: q, answer"
    )


def test_a_missing_column_that_an_option_names_says_which_option(tmp_path) -> None:
    path = write_dict(tmp_path / "d", easy=ROWS, hard=[{"question": "x", "a": 1}])
    with pytest.raises(UserError) as caught:
        load_eval_splits(task(), str(path), None)
    assert str(caught.value) == (
        f"--eval-dataset {path}, split 'hard': task 'toy' needs the column 'q', which row 1 of the batch lacks; "
        "columns found: question, a; name another with --task-option question=COLUMN"
    )
    assert load_eval_splits(task(question="question"), str(path), None, only=["hard"]) == {"hard": [(["x"], [1])]}


@pytest.mark.parametrize(
    "prompt",
    [
        "a\ud83d",
        [{"role": "user", "content": "a\ud83d"}],
        [{"role": "user", "content": [{"type": "text", "text": "a\ud83d"}]}],
    ],
)
def test_half_a_character_anywhere_in_a_prompt_names_the_row(prompt) -> None:
    rows = [{"q": "fine", "a": 1}, {"q": prompt, "a": 2}]
    with pytest.raises(UserError, match=r"row 2: the prompt holds '\\ud83d', which is not a character"):
        load_batch_source(task({"train": rows}), None, batch_size=2, seed=1)
