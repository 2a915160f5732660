"""Rows from wherever users keep them, and the batches drawn from them."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esplug import hookimpl
from esplug.data.batches import Batches, load_batch_source, load_eval_splits
from esplug.data.readers import hub_revision, named, read, sources
from esplug.errors import UserError
from esplug.plugins import PluginInfo
from esplug.plugins.loading import relay
from esplug.plugins.task import Task

ROWS = [{"q": "one", "a": 1}, {"q": "zwei, drei", "a": 23}, {"q": 'vier "4" ä\u4e94', "a": -4}]


class Toy:
    """A task whose own data is ``own``; it leaves every path to esplug."""

    def __init__(self, own=None) -> None:
        self.own = own

    @hookimpl
    def options(self):
        return {"shots": 0, "question": "q"}

    @hookimpl
    def collate(self, batch, options):
        return [row[options["question"]] for row in batch], [row["a"] for row in batch]

    @hookimpl
    def template(self, question):
        return question

    @hookimpl
    def reward(self):
        return 0.0

    @hookimpl
    def load_rows(self, split, path):
        return self.own[split] if self.own and path is None else None


def task(own=None, **options) -> Task:
    info = PluginInfo("task", "toy", "esplug-tasks-toy", "1.0", "toy")
    return Task.wrap(info, relay(Toy(own), info), options)


def read_splits(path: str, split: str) -> dict:
    """Every split of every source, by name."""
    parts = [part for source in sources(path) for part in read(source, f"--{split}-dataset")]
    return {name: part.rows for name, part in named(parts).items()}


def names(path) -> list[str]:
    return list(load_eval_splits(task(), str(path), None))


def write(folder: Path, kind: str, rows=ROWS) -> Path:
    """Save rows the way each kind of source holds them."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    import datasets

    path = folder / f"rows.{kind}"
    match kind:
        case "json":
            path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        case "jsonl":
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
        case "csv":
            pyarrow.csv.write_csv(pyarrow.Table.from_pylist(rows), path)
        case "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        case "dataset":
            datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


def write_dict(path: Path, **splits) -> Path:
    import datasets

    datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(path)
    return path


# --- batches ---------------------------------------------------------------------------------------------


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


# --- readers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_a_file_is_one_split_named_after_it(kind, tmp_path) -> None:
    assert read_splits(str(write(tmp_path, kind)), "train") == {"rows": ROWS}


def test_a_saved_dataset_is_one_split_named_after_its_folder(tmp_path) -> None:
    splits = read_splits(str(write(tmp_path, "dataset")), "eval")
    assert {name: list(rows) for name, rows in splits.items()} == {"rows.dataset": ROWS}


def test_a_saved_dataset_dict_keeps_its_splits(tmp_path) -> None:
    splits = read_splits(str(write_dict(tmp_path / "d", easy=ROWS[:1], hard=ROWS[1:])), "eval")
    assert {name: list(rows) for name, rows in splits.items()} == {"easy": ROWS[:1], "hard": ROWS[1:]}


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


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", b'{"q": 1}\n{"q": \n', "cannot be read: line 2"),
        ("rows.jsonl", b'{"q": 1}\n\n7\n', "row 2 is not an object"),
        ("rows.jsonl", b"\xff\xfe\x00", "cannot be read"),
        ("rows.json", b'{"q": 1}', "list of rows"),
        ("rows.json", b"[1]", "row 1 is not an object"),
        ("rows.json", b"", "cannot be read"),
        ("rows.csv", b"q,a\n1,2,3\n", "cannot be read"),
        ("rows.parquet", b"PAR1", "cannot be read"),
        ("rows.txt", b"one", "unknown kind of file; use .json, .jsonl"),
    ],
)
def test_a_bad_file_is_one_line_that_names_flag_and_file(name, content, words, tmp_path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_splits(str(path), "eval")
    assert str(caught.value).startswith(f"--eval-dataset {path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["./nothing", "/no/such", "~/no/such", "no.jsonl", "a/b/c", "a b", "a?", ""])
def test_what_can_be_no_hub_id_is_looked_for_on_disk_alone(path, monkeypatch) -> None:
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
    with pytest.raises(UserError, match=r"--eval-dataset .*rows\.jsonl: the split 'rows' is there twice"):
        names(f"{path},{path}")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc"), st.sampled_from("abc")), unique=True))
def test_no_split_is_lost_whatever_the_names(paths) -> None:
    from esplug.data.readers import SplitRows

    out = named([SplitRows("--eval-dataset x", path, [{"path": path}]) for path in paths])
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


def test_training_takes_one_source(tmp_path) -> None:
    path = write(tmp_path, "jsonl")
    with pytest.raises(UserError, match=r"^--train-dataset .*,.*: training takes one data set, not 2; "):
        load_batch_source(task(), f"{path},{path}", 9, 0)


def test_only_the_named_splits_are_kept_and_looked_at(tmp_path) -> None:
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


# --- copies of Hub repositories, and the Hub ---------------------------------------------------------------


def hub_copy(folder: Path, **configs) -> Path:
    """Make what `hf download --repo-type dataset` leaves: a card with YAML, and files of rows."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            (folder / config).mkdir(parents=True, exist_ok=True)
            write(folder / config, "jsonl", rows).rename(folder / config / f"{split}.jsonl")
            lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "# A card"]), encoding="utf-8")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> None:
    """Keep what the datasets library caches out of the home directory."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_local_copy_of_a_hub_repository_is_read(cache, tmp_path) -> None:
    path = hub_copy(tmp_path / "owner" / "sums", default={"train": ROWS, "test": ROWS[:1]})
    assert load_eval_splits(task(), str(path), 2) == {
        "train": [(["one", "zwei, drei"], [1, 23])],
        "test": [(["one"], [1])],
    }


def test_a_copy_with_configurations_asks_for_one(cache, tmp_path) -> None:
    path = hub_copy(tmp_path / "sums", easy={"test": ROWS[:1]}, hard={"test": ROWS})
    with pytest.raises(UserError, match=r"--eval-dataset .*sums: add :CONFIG, one of easy, hard$"):
        names(path)
    splits = load_eval_splits(task(), f"{path}:easy", None)
    assert splits == {"test": [(["one"], [1])]}


def test_a_folder_that_is_no_dataset_says_so(tmp_path) -> None:
    with pytest.raises(UserError, match=r"dataset_dict\.json.*save_to_disk"):
        read_splits(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("owner/name", ("owner/name", None, None)),
        ("name", ("name", None, None)),
        ("owner/name:main", ("owner/name", "main", None)),
        ("owner/na.me:hard@refs/pr/1", ("owner/na.me", "hard", "refs/pr/1")),
    ],
)
def test_hub_ids_may_name_configuration_and_revision(path, expected, monkeypatch) -> None:
    asked = []

    def revision_of(name, revision):
        asked.append((name, revision))
        return "c0ffee"

    def load_dataset(name, config, revision):
        asked.append((name, config, revision))
        return {"test": ROWS}

    monkeypatch.setattr("esplug.data.readers.hub_revision", revision_of)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert read_splits(path, "train") == {"test": ROWS}
    name, config, revision = expected
    assert asked == [(name, revision), (name, config, "c0ffee")]


@pytest.fixture
def no_hub(monkeypatch) -> None:
    """Make the Hub's address one where nothing listens."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize("path", ["owner/name", "owner/name:easy", "owner/name@v2"])
def test_a_hub_out_of_reach_is_one_line_at_once_and_says_what_to_do(path, no_hub, cache) -> None:
    started = time.perf_counter()
    with pytest.raises(UserError) as caught:
        read_splits(path, "train")
    assert time.perf_counter() - started < 5
    assert str(caught.value) == (
        f"--train-dataset {path}: no such file or folder, and the Hugging Face Hub is out of reach; where it is in "
        "reach, run `hf download --repo-type dataset owner/name --local-dir DIR`, then give DIR"
    )


@pytest.fixture
def small_hub(monkeypatch) -> Iterator[None]:
    """Serve a Hub that knows one data set, `owner/name`, in two revisions."""

    class Hub(BaseHTTPRequestHandler):
        commits: ClassVar = {"/api/datasets/owner/name": "c0ffee", "/api/datasets/owner/name/revision/v1": "0ddba11"}

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            body = json.dumps({"id": "owner/name", "sha": self.commits.get(path)}).encode()
            self.send_response(200 if path in self.commits else 404)
            for header in [("Content-Length", str(len(body))), ("X-Error-Code", "RepoNotFound")]:
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


def test_the_hub_is_asked_for_the_commit(small_hub) -> None:
    assert hub_revision("owner/name", None) == "c0ffee"
    assert hub_revision("owner/name", "v1") == "0ddba11"
    with pytest.raises(UserError, match=r"^--eval-dataset owner/nam: no such file .* not to be had from the Hub: 404"):
        read_splits("owner/nam", "eval")


def test_a_name_that_the_hub_does_not_allow_is_not_called_out_of_reach(no_hub) -> None:
    with pytest.raises(
        UserError, match=r"^--train-dataset -x: no such file or folder, and not to be had from the Hub: "
    ):
        read_splits("-x", "train")


def test_what_the_hub_does_not_have_is_one_line(monkeypatch) -> None:
    def revision_of(*_):
        raise LookupError("404 Client Error")

    monkeypatch.setattr("esplug.data.readers.hub_revision", revision_of)
    with pytest.raises(UserError, match=r"^--train-dataset owner/name: .* from the Hub: 404 Client Error$"):
        read_splits("owner/name", "train")


def test_a_failing_download_is_one_line(monkeypatch) -> None:
    def load_dataset(*_, **__):
        raise ConnectionError("no route\nto the Hub")

    monkeypatch.setattr("esplug.data.readers.hub_revision", lambda *_: "c0ffee")
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"^--train-dataset owner/name: not readable from the Hub: no route$"):
        read_splits("owner/name", "train")


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


# --- odd but legal data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_jsonl_lines_end_at_line_feeds_alone(character, tmp_path) -> None:
    rows = [{"q": f"a{character}b", "a": 1}]
    assert read_splits(str(write(tmp_path, "jsonl", rows)), "train") == {"rows": rows}


@pytest.mark.parametrize(("name", "text"), [("rows.json", '[{"q": 1}]'), ("rows.jsonl", '{"q": 1}\n')])
def test_a_byte_order_mark_is_no_error(name, text, tmp_path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8-sig")
    assert read_splits(str(path), "train") == {"rows": [{"q": 1}]}


def test_csv_cells_may_span_lines(tmp_path) -> None:
    rows = [{"q": f"line one of {i}\nline two", "a": i} for i in range(60_000)]
    assert read_splits(str(write(tmp_path, "csv", rows)), "train") == {"rows": rows}


def test_a_dataset_dict_without_splits_is_a_user_error(tmp_path) -> None:
    with pytest.raises(UserError):
        load_batch_source(task(), str(write_dict(tmp_path / "d")), 9, 0)


def test_evaluation_data_without_splits_are_a_user_error(tmp_path) -> None:
    with pytest.raises(UserError):
        load_eval_splits(task(), str(write_dict(tmp_path / "d")), None)


def test_home_is_expanded(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "jsonl")
    assert read_splits("~/rows.jsonl", "train") == {"rows": ROWS}


@pytest.mark.parametrize(
    ("texts", "read_as"),
    [
        (["1", "-20"], [1, -20]),
        (["0.5", "142.0"], [0.5, 142.0]),
        (["007", "1"], ["007", "1"]),
        (["12345678901234567890123", "1"], [12345678901234567890123, 1]),
        (["0.1234567890123456789", "1.0"], ["0.1234567890123456789", "1.0"]),
        (["NA", ""], ["NA", ""]),
        (["nan", "inf"], ["nan", "inf"]),
        (["1", ""], ["1", ""]),
        (["true", "2024-01-01"], ["true", "2024-01-01"]),
    ],
)
def test_a_csv_column_is_numbers_only_where_nothing_is_lost(texts, read_as, tmp_path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("answer,problem\n" + "".join(f'{text},"a\nb"\n' for text in texts), encoding="utf-8")
    (part,) = read(str(file), "--eval-dataset")
    assert [row["answer"] for row in part.rows] == read_as
    assert {row["problem"] for row in part.rows} == {"a\nb"}


def test_a_csv_file_that_is_not_utf_8_is_one_line(tmp_path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes("problem\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"^--eval-dataset .*rows\.csv: cannot be read: .*UTF"):
        read(str(file), "--eval-dataset")
