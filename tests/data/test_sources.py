"""Every split of every source is read, under a name of its own."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esplug.data.batches import load_batch_source, load_eval_splits
from esplug.data.sources import SplitRows, name_splits
from esplug.errors import UserError
from tests.helpers.rows import ROWS, names, read_splits, task, write, write_dict


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_a_file_is_one_split_named_after_it(kind, tmp_path) -> None:
    assert read_splits(str(write(tmp_path, kind)), "train") == {"rows": ROWS}


def test_a_saved_dataset_is_one_split_named_after_its_folder(tmp_path) -> None:
    splits = read_splits(str(write(tmp_path, "dataset")), "eval")
    assert {name: list(rows) for name, rows in splits.items()} == {"rows.dataset": ROWS}


def test_a_saved_dataset_dict_keeps_its_splits(tmp_path) -> None:
    splits = read_splits(str(write_dict(tmp_path / "d", easy=ROWS[:1], hard=ROWS[1:])), "eval")
    assert {name: list(rows) for name, rows in splits.items()} == {"easy": ROWS[:1], "hard": ROWS[1:]}


@pytest.mark.parametrize("path", ["./nothing", "/no/such", "~/no/such", "no.jsonl", "a/b/c", "a b", "a?", ""])
def test_names_that_are_not_hub_ids_never_ask_the_hub(path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(UserError, match="no such file or folder"):
        read_splits(path, "train")


def test_a_folder_of_saved_datasets_gives_every_split(tmp_path) -> None:
    write_dict(tmp_path / "suite" / "sums", easy=ROWS[:1], hard=ROWS)
    write_dict(tmp_path / "suite" / "deep" / "words", train=ROWS[:2])
    write(tmp_path / "suite", "dataset")
    (tmp_path / "suite" / "notes").mkdir()
    write_dict(tmp_path / "suite" / ".words.partial", lost=ROWS)
    splits = load_eval_splits(task(), str(tmp_path / "suite"), None)
    assert {name: len(batch[0]) for name, (batch,) in splits.items()} == {
        "train": 2,
        "rows.dataset": 3,
        "easy": 1,
        "hard": 3,
    }


def test_a_clash_of_names_is_settled_by_the_data_sets_names(tmp_path) -> None:
    write_dict(tmp_path / "sums", test=ROWS[:1], easy=ROWS)
    write_dict(tmp_path / "words", test=ROWS[:2])
    both = f"{tmp_path / 'sums'}, {tmp_path / 'words'}"
    splits = load_eval_splits(task(), both, None)
    assert {name: len(batch[0]) for name, (batch,) in splits.items()} == {"sums/test": 1, "easy": 3, "words/test": 2}
    assert [*load_eval_splits(task(), str(tmp_path), None)] == ["sums/test", "easy", "words/test"]


def test_a_split_may_be_called_like_another_data_set(tmp_path) -> None:
    write_dict(tmp_path / "a", b=ROWS, a=ROWS)
    write_dict(tmp_path / "b", b=ROWS)
    assert names(tmp_path) == ["a/b", "a", "b/b"]


def test_data_sets_of_the_same_name_are_told_apart_by_what_holds_them(tmp_path) -> None:
    for year in ("2023", "2024"):
        write_dict(tmp_path / year / "amc", test=ROWS)
        write(tmp_path / year, "jsonl")
    assert names(tmp_path) == ["2023/amc/test", "2024/amc/test"]
    files = ",".join(str(tmp_path / year / "rows.jsonl") for year in ("2023", "2024"))
    assert names(files) == ["2023/rows", "2024/rows"]


def test_one_split_named_twice_is_an_error(tmp_path) -> None:
    path = write(tmp_path, "jsonl")
    with pytest.raises(UserError, match=r"--eval-dataset .*rows\.jsonl: the split 'rows' is given twice"):
        names(f"{path},{path}")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc"), st.sampled_from("abc")), unique=True))
def test_no_split_is_lost_whatever_the_names(paths) -> None:
    out = name_splits([SplitRows("--eval-dataset x", path, [{"path": path}]) for path in paths])
    assert [part.rows[0]["path"] for part in out.values()] == paths
    last = Counter(path[-1] for path in paths)
    for name, part in out.items():
        assert "/".join(part.names).endswith(name)
        assert (name == part.names[-1]) == (last[part.names[-1]] == 1)


def test_a_path_with_a_comma_that_exists_is_one_path(tmp_path) -> None:
    path = tmp_path / "a,b.jsonl"
    write(tmp_path, "jsonl").rename(path)
    assert names(path) == ["a,b"]
    assert load_batch_source(task(), str(path), 9, 0).targets == [1, 23, -4]


def test_a_missing_one_of_several_is_named(tmp_path) -> None:
    with pytest.raises(UserError) as caught:
        names(f"{write(tmp_path, 'jsonl')},{tmp_path}/lost.jsonl")
    assert str(caught.value) == f"--eval-dataset {tmp_path}/lost.jsonl: no such file or folder"


def test_a_folder_that_is_no_dataset_says_so(tmp_path) -> None:
    with pytest.raises(UserError, match=r"dataset_dict\.json.*save_to_disk"):
        read_splits(str(tmp_path), "train")


def test_a_dataset_dict_without_splits_is_a_user_error(tmp_path) -> None:
    with pytest.raises(UserError, match=r"d: the data set has no splits$"):
        read_splits(str(write_dict(tmp_path / "d")), "train")


def test_home_is_expanded(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "jsonl")
    assert read_splits("~/rows.jsonl", "train") == {"rows": ROWS}
