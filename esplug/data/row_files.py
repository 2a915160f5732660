"""Files of rows: readers for JSON, JSON lines, CSV and Parquet."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from esplug.errors import UserError
from esplug.hookspecs import Row
from esplug.utils.text import one_line


def read_rows(path: Path, origin: str) -> list[Row]:
    """Read the rows of a file, whose suffix gives its format. Error messages begin with ``origin``."""
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{origin}: unknown kind of file; use {', '.join(SUFFIXES)} or a saved DatasetDict")
    try:
        rows = reader(path)
    except Exception as error:
        raise UserError(f"{origin}: cannot be read: {one_line(error)}") from error
    if bad := next((number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)), None):
        raise UserError(f"{origin}: row {bad} is not an object with columns")
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        if error.object.startswith(b"\x1f\x8b"):
            raise ValueError("compressed with gzip; unpack it") from error
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise ValueError(f"line {line}: byte 0x{byte:02x} is not UTF-8; save it as UTF-8") from error


def _read_json(path: Path) -> list[Any]:
    try:
        rows = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        hint = "; a file with one row per line must be called .jsonl" if error.msg == "Extra data" else ""
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}{hint}") from error
    if not isinstance(rows, list):
        raise ValueError("expected a list of rows")
    return rows


def _read_jsonl(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
        except (ValueError, RecursionError) as error:  # a number with thousands of digits; deeply nested brackets
            raise ValueError(f"line {number}: {one_line(error)}") from error
    return rows


def _read_csv(path: Path) -> list[Any]:
    import pyarrow
    import pyarrow.csv

    _read_text(path)  # for its error messages
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)  # prompts have several lines
    # With one thread, errors give the row's number; with one block, rows may have any length.
    options = pyarrow.csv.ReadOptions(use_threads=False, block_size=min(path.stat().st_size + 1, 2**31 - 1))
    with pyarrow.csv.open_csv(path, options, parse) as file:
        names = _check_distinct(file.schema.names)
    as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string()), null_values=[])
    table = pyarrow.csv.read_csv(path, options, parse, as_text)
    columns = {name: _convert_column(table[name].to_pylist()) for name in names}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    table.validate(full=True)  # reading a damaged table may crash the process
    _check_distinct(table.column_names)
    return cast(list[Any], table.to_pylist())


_READERS = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
SUFFIXES = tuple(_READERS)


def _check_distinct(names: list[str]) -> list[str]:
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"column {duplicate!r} is there twice")
    return names


def _convert_column(texts: list[str]) -> Sequence[Any]:
    """Convert a column to numbers if that loses nothing: ``007`` and numbers of thirty digits stay text."""
    for kind in (int, float):
        try:
            values = [kind(text) for text in texts]
        except ValueError:
            continue
        if list(map(str, values)) == texts and all(map(math.isfinite, values)):
            return values
    return texts
