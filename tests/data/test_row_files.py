"""Files of rows are read, and malformed ones are one-line errors."""

import pytest

from esplug.data.sources import read
from esplug.errors import UserError
from tests.helpers.rows import read_splits, write


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
