"""Malformed data sets at the command line: exit status 2 and one line, before anything is started or written."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.cli import run_cli
from tests.helpers.timing import within

ROW = {"context": "Make 3 of 1, 2.\n<think>", "numbers": [1, 2], "target": 3}
SUM = {"problem": "What is 1 + 1?", "answer": "2"}
HEADER = "context,numbers,target\n"
MOST_SECONDS = 10

Make = Callable[[Path], object]
Fault = tuple[Make, list[str]]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def at_row(number: int, **columns: object) -> str:
    """Write seven rows, one of them with these columns instead of the valid ones."""
    return lines(*(ROW | columns if i == number else ROW for i in range(1, 8)))


def file(name: str, content: str | bytes) -> Make:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def parquet(columns: dict[str, list[object]], change: Callable[[bytes], bytes] = bytes) -> Make:
    def make(folder: Path) -> Path:
        import pyarrow
        import pyarrow.parquet

        path = folder / "rows.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def saved(change: Callable[[Path], object] = lambda _: None, **splits: list[dict]) -> Make:
    """Save a DatasetDict, and damage it."""

    def make(folder: Path) -> object:
        import datasets

        path, bars = folder / "saved", datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            made = {name: datasets.Dataset.from_list(rows or [ROW]) for name, rows in splits.items()}
            made = {name: part if splits[name] else part.select([]) for name, part in made.items()}
            datasets.DatasetDict(made).save_to_disk(path)
        finally:
            if not bars:
                datasets.enable_progress_bars()
        return change(path) or path

    return make


def arrow(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (table,) = path.glob("*/*.arrow")
        table.write_bytes(change(table.read_bytes()))

    return damage


def hub_copy(name: str, content: str) -> Make:
    def make(folder: Path) -> Path:
        path = folder / "copy"
        path.mkdir()
        (path / "README.md").write_text("# Card")
        (path / name).write_text(content)
        return path

    return make


def made(make: Callable[[Path], object], name: str) -> Make:
    """Make a special file under an ordinary name."""

    def at(folder: Path) -> Path:
        make(folder / name)
        return folder / name

    return at


def several(*makes: Make) -> Make:
    def make(folder: Path) -> str:
        for number in range(len(makes)):
            (folder / str(number)).mkdir()
        return ",".join(str(each(folder / str(number))) for number, each in enumerate(makes))

    return make


def scrambled(data: bytes) -> bytes:
    """Overwrite the offsets and texts of a table, but keep its framing."""
    middle = len(data) // 2
    return data[: middle - 400] + b"\xfe\x81" * 400 + data[middle + 400 :]


GOOD = file("good.jsonl", lines(ROW))
TORN_LINE_7 = "".join(lines(ROW) * 6) + lines(ROW)[:30] + "\n" + lines(ROW)
FAULTS: dict[str, Fault] = {  # fault: how to make it, and words in the error besides the file
    "empty .json": (file("rows.json", ""), ["rows.json", "line 1"]),
    "empty .jsonl": (file("rows.jsonl", ""), ["rows.jsonl", "no rows"]),
    "empty .csv": (file("rows.csv", ""), ["rows.csv", "Empty"]),
    "empty .parquet": (file("rows.parquet", ""), ["rows.parquet", "0 bytes"]),
    "blank lines": (file("rows.jsonl", "\n \n\t\n"), ["rows.jsonl", "no rows"]),
    "header alone": (file("rows.csv", HEADER), ["rows.csv", "no rows"]),
    "empty list": (file("rows.json", "[]"), ["rows.json", "no rows"]),
    "torn in line 7": (file("rows.jsonl", TORN_LINE_7), ["rows.jsonl", "line 7, column 13"]),
    "torn .json": (file("rows.json", json.dumps([ROW] * 3, indent=1)[:150]), ["rows.json", "line 1"]),
    "lines named .json": (file("rows.json", lines(ROW, ROW)), ["rows.json", "line 2", ".jsonl"]),
    "object, no list": (file("rows.json", json.dumps({"data": [ROW]})), ["rows.json", "list of rows"]),
    "list named .jsonl": (file("rows.jsonl", json.dumps([ROW])), ["rows.jsonl", "row 1", "columns"]),
    "number for a row": (file("rows.jsonl", lines(ROW, ROW, 7)), ["rows.jsonl", "row 3", "columns"]),
    "null for a row": (file("rows.json", json.dumps([ROW, None])), ["rows.json", "row 2", "columns"]),
    "text for a number": (file("rows.jsonl", at_row(4, target="three")), ["row 4", "'target'", "'three'"]),
    "list for a number": (file("rows.jsonl", at_row(5, target=[3])), ["row 5", "'target'", "[3]"]),
    "nested list": (file("rows.jsonl", at_row(6, numbers=[[1], 2])), ["row 6", "'numbers'", "[[1], 2]"]),
    "null target": (file("rows.jsonl", at_row(7, target=None)), ["row 7", "'target'", "None"]),
    "bool target": (file("rows.jsonl", at_row(2, target=True)), ["row 2", "'target'", "True"]),
    "bool among numbers": (file("rows.jsonl", at_row(2, numbers=[True, 2])), ["row 2", "'numbers'", "True"]),
    "NaN target": (file("rows.jsonl", at_row(1, target=float("nan"))), ["row 1", "'target'", "nan"]),
    "infinite target": (file("rows.jsonl", at_row(3, target=1e999)), ["row 3", "'target'", "inf"]),
    "number of 5000 digits": (file("rows.jsonl", at_row(2, target=8) + "9" * 5000), ["line 8", "digits"]),
    "text of 5000 digits": (file("rows.jsonl", at_row(2, target="9" * 5000)), ["row 2", "'target'", "9 ... 9"]),
    "no numbers": (file("rows.jsonl", at_row(3, numbers=[])), ["row 3", "'numbers'", "[]"]),
    "negative numbers": (file("rows.jsonl", at_row(3, numbers=[-1, 2])), ["row 3", "'numbers'", "-1"]),
    "code for numbers": (file("rows.jsonl", at_row(3, numbers="__import__('os')")), ["row 3", "'numbers'"]),
    "deep text for numbers": (file("rows.jsonl", at_row(3, numbers="[" * 100_000)), ["row 3", "'numbers'", "..."]),
    "null prompt": (file("rows.jsonl", at_row(4, context=None)), ["row 4"]),
    "number for a prompt": (file("rows.jsonl", at_row(4, context=5)), ["row 4"]),
    "half a character": (file("rows.jsonl", at_row(4, context="a\ud83d")), ["row 4", "'\\ud83d'"]),
    "missing column": (file("rows.jsonl", lines({"context": "x", "numbers": [1]})), ["'target'", "context, numbers"]),
    "misspelt column": (file("rows.csv", HEADER.upper() + "x,[1],1\n"), ["'numbers'", "CONTEXT, NUMBERS, TARGET"]),
    "other columns later": (file("rows.jsonl", lines(ROW, ROW, {"context": "x"})), ["row 3", "'numbers'"]),
    "brackets in brackets": (file("rows.jsonl", lines(ROW) + "[" * 100_000), ["line 2", "recursion"]),
    "duplicated header": (file("rows.csv", HEADER[:-1] + ",target\nx,[1],1,2\n"), ["'target'", "twice"]),
    "wrong delimiter": (file("rows.csv", HEADER.replace(",", ";") + "x;[1];1\n"), ["context;numbers;target"]),
    "wrong delimiter, commas": (file("rows.csv", HEADER.replace(",", ";") + "x;[1,2];1\n"), ["Row #2", "1 columns"]),
    "short CSV row": (file("rows.csv", HEADER + "x,[1],1\n" * 3 + "x,[1]\n"), ["Row #5", "Expected 3 columns"]),
    "open quote": (file("rows.csv", HEADER + '"x,[1],1\n' * 3), ["rows.csv", "Expected 3 columns"]),
    "CSV number": (file("rows.csv", HEADER + "x,[1],1\nx,[1],\n"), ["row 2", "'target'", "''"]),
    "UTF-16 .csv": (file("rows.csv", (HEADER + "x,[1],1").encode("utf-16")), ["line 1", "0xff", "UTF-8"]),
    "UTF-16 .jsonl": (file("rows.jsonl", lines(ROW).encode("utf-16")), ["line 1", "0xff", "UTF-8"]),
    "latin-1": (file("rows.jsonl", lines(ROW).encode() + b'{"context": "caf\xe9"}'), ["line 2", "0xe9", "UTF-8"]),
    "latin-1 .json": (file("rows.json", b'[\n{"context": "caf\xe9"}]'), ["line 2", "0xe9", "UTF-8"]),
    "binary garbage": (file("rows.jsonl", bytes(range(256)) * 100), ["rows.jsonl", "UTF-8"]),
    "binary .csv": (file("rows.csv", bytes(range(128)) * 100), ["rows.csv", "columns"]),
    "binary .parquet": (file("rows.parquet", bytes(range(256)) * 100), ["rows.parquet", "Parquet"]),
    "gzip named .jsonl": (file("rows.jsonl", gzip.compress(lines(ROW).encode())), ["gzip", "unpack"]),
    "gzip": (file("rows.jsonl.gz", gzip.compress(lines(ROW).encode())), ["unknown kind of file", ".jsonl"]),
    "pickle": (file("rows.pkl", b"cos\nsystem\n(S'touch pwned'\ntR."), ["unknown kind of file", ".jsonl"]),
    "truncated .parquet": (parquet({"context": ["x"] * 99}, lambda data: data[:-20]), ["rows.parquet", "Parquet"]),
    ".parquet without rows": (parquet({"context": [], "numbers": [], "target": []}), ["no rows"]),
    ".parquet of bytes": (parquet({"context": [b"x"], "numbers": [[1]], "target": [1]}), ["row 1", "b'x'"]),
    ".parquet of nulls": (parquet({"context": ["x"], "numbers": [[1, None]], "target": [1]}), ["row 1", "'numbers'"]),
    "folder named .json": (made(Path.mkdir, "rows.json"), ["rows.json", "dataset_dict.json"]),
    "link to itself": (made(lambda path: path.symlink_to(path), "rows.jsonl"), ["rows.jsonl", "symbolic links"]),
    "link to nothing": (made(lambda path: path.symlink_to("lost"), "rows.jsonl"), ["rows.jsonl", "no such file"]),
    "pipe": (made(os.mkfifo, "rows.jsonl"), ["rows.jsonl", "pipe"]),
    "device": (lambda _: "/dev/zero", ["/dev/zero", "device"]),
    "link to a device": (made(lambda path: path.symlink_to("/dev/zero"), "rows.csv"), ["rows.csv", "device"]),
    "in a file": (lambda folder: f"{file('a.csv', HEADER)(folder)}/b", ["a.csv/b", "Not a directory"]),
    "name too long": (lambda folder: folder / ("x" * 300), ["name too long"]),
    "no such user": (lambda _: "~nobody-here/rows.jsonl", ["~nobody-here"]),
    "one of several torn": (several(GOOD, file("rows.jsonl", "{")), []),
    "comma too many": (several(GOOD, lambda _: "", GOOD), []),
    "no split train": (saved(easy=[ROW], hard=[{"x": 1}]), []),
    "split without rows": (saved(train=[], test=[]), ["no rows"]),
    "no splits": (saved(), ["no splits"]),
    "one split's folder without its state": (
        saved(lambda path: (path / "train" / "state.json").unlink() or path / "train", train=[ROW]),
        ["saved/train", "dataset_dict.json"],
    ),
    "split's folder lost": (saved(lambda path: (path / "train").rename(path / "x") and None, train=[ROW]), ["train"]),
    "torn dataset_dict.json": (
        saved(lambda path: (path / "dataset_dict.json").write_text('{"spl') and None, train=[ROW]),
        ["saved", "JSONDecodeError"],
    ),
    "other dataset_dict.json": (
        saved(lambda path: (path / "dataset_dict.json").write_text("{}") and None, train=[ROW]),
        ["saved", "splits"],
    ),
    "torn table": (saved(arrow(lambda data: data[: len(data) // 2]), train=[ROW] * 500), ["saved", "read"]),
    "damaged table": (saved(arrow(scrambled), train=[ROW] * 500), ["saved", "ArrowInvalid"]),
    "pipe in a saved data set": (saved(lambda path: os.mkfifo(path / "train" / "x.arrow"), train=[ROW]), ["pipe"]),
    "saved rows lack a column": (saved(train=[{"context": "x", "target": 1}]), ["'train'", "row 1", "'numbers'"]),
    "saved row with null": (saved(train=[ROW, ROW | {"target": None}]), ["'train'", "row 2", "'target'"]),
    "torn copy of a Hub repository": (hub_copy("rows.jsonl", lines(ROW) + "{torn"), ["copy", "JSON"]),
    "copy of nothing": (hub_copy("notes.txt", ""), ["copy"]),
    "Hub out of reach": (lambda _: "owner/name", ["owner/name", "out of reach", "hf download"]),
    "configuration of a file": (lambda folder: f"{GOOD(folder)}:main", ["no such file"]),
}  # fmt: skip
MATH_FAULTS: dict[str, Fault] = {
    "null answer": (file("rows.jsonl", lines(SUM, SUM | {"answer": None})), ["row 2", "'answer'"]),
    "empty problem": (file("rows.jsonl", lines(SUM, SUM, SUM | {"problem": " "})), ["row 3", "'problem'"]),
    "NaN answer": (file("rows.jsonl", lines(SUM | {"answer": float("nan")})), ["row 1", "'answer'"]),
    "misspelt column": (
        file("rows.jsonl", lines({"question": "1+1", "answer": "2"})),
        ["'problem'", "question, answer", "--task-option problem=COLUMN"],
    ),
    "torn in line 2": (file("rows.jsonl", lines(SUM) + '{"problem": "1'), ["line 2"]),
    "empty CSV cell": (file("rows.csv", "problem,answer\n1+1,2\n1+2,\n"), ["row 2", "'answer'"]),
    "null in .parquet": (parquet({"problem": ["x", None], "answer": ["1", "2"]}), ["row 2", "'problem'"]),
    "half a character": (file("rows.jsonl", lines(SUM | {"problem": "\udc00"})), ["row 1", "'\\udc00'"]),
    "split without rows": (saved(train=[], test=[]), ["no rows"]),
}


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch, tmp_path) -> Iterator[None]:
    """Forbid engines, Ray, the Hub and files in the user's home."""
    monkeypatch.setattr("esplug.runs.preparation.Cluster", lambda *_: pytest.fail("Ray was started"))
    monkeypatch.setattr("esplug.runs.preparation.RewardPool", lambda *_, **__: pytest.fail("graders were started"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def refused(monkeypatch, capfd, folder: Path, task: str, command: str, source: object) -> str:
    """Run a command on a data set; return the error line."""
    flag = f"--{command}-dataset"
    arguments = [command, "--task", task, "--model-name", "./no-such-model", flag, str(source)]
    arguments += ["--output-directory", str(folder / "out")]
    with within(MOST_SECONDS):
        code, _, err = run_cli(monkeypatch, capfd, *arguments)
    (line,) = err.splitlines()
    assert code == 2, line
    assert line.startswith((f"error: {flag} ", f"error: {flag}: ")), line
    assert len(line) < 1200
    assert not (folder / "out").exists()
    return line


def test_there_are_at_least_thirty_faults() -> None:
    assert len(FAULTS) + len(MATH_FAULTS) >= 30


@pytest.mark.fault("malformed data set", 2)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_data_set_for_countdown(fault, monkeypatch, capfd, tmp_path) -> None:
    make, words = FAULTS[fault]
    source = make(tmp_path)
    for command in ("train", "eval"):
        line = refused(monkeypatch, capfd, tmp_path, "countdown", command, source)
        assert all(word in line for word in words), line


@pytest.mark.fault("malformed data set", 2)
@pytest.mark.parametrize("fault", MATH_FAULTS)
def test_a_malformed_data_set_for_math(fault, monkeypatch, capfd, tmp_path) -> None:
    make, words = MATH_FAULTS[fault]
    source = make(tmp_path)
    for command in ("train", "eval"):
        line = refused(monkeypatch, capfd, tmp_path, "math", command, source)
        assert all(word in line for word in words), line


def test_the_faulty_data_set_or_split_is_named(monkeypatch, capfd, tmp_path) -> None:
    for fault, command, words in (
        ("one of several torn", "train", ["training takes one data set, not 2"]),
        ("one of several torn", "eval", ["rows.jsonl", "line 1"]),
        ("comma too many", "eval", ["extra comma"]),
        ("no split train", "train", ["no split 'train' among easy, hard"]),
        ("no split train", "eval", ["'hard'", "row 1", "'numbers'"]),
    ):
        folder = tmp_path / f"{fault} {command}"
        folder.mkdir()
        line = refused(monkeypatch, capfd, folder, "countdown", command, FAULTS[fault][0](folder))
        assert all(word in line for word in words), line


@pytest.mark.parametrize("place", ["file", "folder", "split"])
def test_a_file_without_read_permission_is_named(place, monkeypatch, capfd, tmp_path) -> None:
    tmp_path.chmod(0o755)
    source = {"file": GOOD, "folder": saved(train=[ROW]), "split": saved(train=[ROW])}[place](tmp_path)
    refused(
        monkeypatch, capfd, tmp_path, "countdown", "train", FAULTS["torn in line 7"][0](tmp_path)
    )  # so that everything is imported
    locked = {"file": source, "folder": source, "split": source / "train"}[place]
    locked.chmod(0)
    nobody = 65534
    me, parents = os.geteuid(), [p for p in tmp_path.parents if p.stat().st_uid == os.geteuid() and p != Path("/")]
    modes = {parent: parent.stat().st_mode for parent in parents}
    try:
        if me == 0:  # root may read everything
            for parent in parents:
                parent.chmod(modes[parent] | 0o55)
            os.seteuid(nobody)
        line = refused(monkeypatch, capfd, tmp_path, "countdown", "train", source)
    finally:
        os.seteuid(me)
        locked.chmod(0o755)
        for parent in parents:
            parent.chmod(modes[parent])
    assert ("state.json" if place == "split" else "ermission denied") in line


def test_a_row_of_any_length_is_read(monkeypatch, capfd, tmp_path) -> None:
    """A large row is no error: the next error is about the model."""
    sources = (
        file("long.csv", HEADER + f'"{"long " * 600_000}",[1],1\n')(tmp_path),
        file("rows.jsonl", lines(ROW | {"context": "long " * 600_000}))(tmp_path),
        file("mark.csv", b"\xef\xbb\xbf" + (HEADER + "x,[1],1\n").encode())(tmp_path),
        file("mark_too.jsonl", b"\xef\xbb\xbf" + lines(ROW).encode())(tmp_path),
        saved(train=[ROW])(tmp_path) / "train",
    )
    arguments = ["eval", "--model-name", "./no-such-model", "--eval-dataset", ",".join(map(str, sources))]
    code, _, err = run_cli(monkeypatch, capfd, *arguments, "--output-directory", str(tmp_path / "out"))
    assert (code, err) == (
        2,
        f"error: --model-name ./no-such-model: no such folder ({Path('no-such-model').absolute()})\n",
    )


@pytest.mark.parametrize("fault", ["pipe", "device", "torn in line 7", "Hub out of reach"])
def test_the_refusal_is_quick(fault, tmp_path) -> None:
    source = str(FAULTS[fault][0](tmp_path))
    command = [sys.executable, "-m", "esplug", "eval", "--eval-dataset", source, "--output-directory", tmp_path / "out"]
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=MOST_SECONDS)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line.startswith(f"error: --eval-dataset {source}: ")) == (2, True), line
    assert not (tmp_path / "out").exists()
