"""Rows: reading them from wherever the user keeps them, and drawing batches from them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from esplug.errors import UserError
from esplug.hookspecs import Row
from esplug.task import Task

Split = Literal["train", "eval"]
Rows = Sequence[Row]
Batch = tuple[list[Any], list[Any]]
_FLAGS: dict[Split, str] = {"train": "--train-dataset", "eval": "--eval-dataset"}
_HUB_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")


class Batches:
    """An endless, reproducible stream of ``(prompts, targets)`` batches.

    Rows are shuffled anew for every pass over them, from the seed alone. Passes are joined, so that every
    batch is full. Each ``iter()`` starts from the beginning.

    Args:
        prompts: one per row.
        targets: one per row.
        batch_size: capped at the number of rows.
        seed: decides the order.
    """

    def __init__(self, prompts: list[Any], targets: list[Any], batch_size: int, seed: int) -> None:
        self.prompts, self.targets, self.seed = prompts, targets, seed
        self.batch_size = min(batch_size, len(prompts))

    def __iter__(self) -> Iterator[Batch]:
        order = self._order()
        while chosen := list(islice(order, self.batch_size)):
            yield [self.prompts[i] for i in chosen], [self.targets[i] for i in chosen]

    def _order(self) -> Iterator[int]:
        for epoch in count():
            yield from np.random.default_rng([self.seed, epoch]).permutation(len(self.prompts)).tolist()


def load_batch_source(task: Task, path: str | None, batch_size: int, seed: int) -> Batches:
    """Read a task's training rows and make batches of them.

    Raises:
        UserError: the rows cannot be read, are empty, or lack a column.
    """
    splits = _load(task, "train", path)
    rows = splits.get("train") if len(splits) > 1 else next(iter(splits.values()))
    if rows is None:
        raise UserError(f"{_source('train', path)}: no split 'train' among {', '.join(splits)}")
    return Batches(*task.collate(_checked(rows, "train", path)), batch_size, seed)


def load_eval_splits(task: Task, path: str | None, limit: int | None) -> dict[str, list[Batch]]:
    """Read a task's evaluation rows: split name to batches, here one batch a split.

    Raises:
        UserError: the rows cannot be read, are empty, or lack a column.
    """
    splits = _load(task, "eval", path)
    return {name: [task.collate(_checked(rows, "eval", path)[:limit])] for name, rows in splits.items()}


def _load(task: Task, split: Split, path: str | None) -> dict[str, Rows]:
    rows = task.load_rows(split, path)
    if rows is None and path is None:
        raise UserError(f"task {task.name!r} has no data of its own; name some with {_FLAGS[split]}")
    if rows is None:
        rows = read_splits(cast(str, path), split)
    splits: dict[str, Rows] = dict(rows) if isinstance(rows, Mapping) else {split: rows}
    if not splits:
        raise UserError(f"{_source(split, path)}: the data set has no splits")
    return splits


def _source(split: Split, path: str | None) -> str:
    """Name a data set in an error."""
    return f"{_FLAGS[split]} {path}" if path else f"the task's own {split} data"


def _checked(rows: Rows, split: Split, path: str | None) -> list[Row]:
    listed = list(rows)
    if not listed:
        raise UserError(f"{_source(split, path)}: the data set has no rows")
    return listed


def read_splits(path: str, split: Split) -> dict[str, Rows]:
    """Read rows from a saved DatasetDict or Dataset, a file, or the Hub: split name to rows.

    Args:
        path: a folder, a ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file, or a Hub id with optional
            ``:config`` and ``@revision``.
        split: names the flag in errors, and the split of a source that has only one.

    Raises:
        UserError: nothing is there, or it is malformed.
    """
    flag = _source(split, path)
    try:
        where = Path(path).expanduser()
        where.stat()
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, ValueError) as error:  # no such user's home; a name too long
        raise UserError(f"{flag}: no such file or folder ({error})") from error
    if where.is_dir():
        return _read_folder(where, flag, split)
    if where.is_file():
        return {where.stem: _read_file(where, flag)}
    if where.suffix in _READERS or path.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(path):
        raise UserError(f"{flag}: no such file or folder")
    return _read_hub(path, flag)


def _read_folder(where: Path, flag: str, split: Split) -> dict[str, Rows]:
    import datasets

    if not (where / "dataset_dict.json").exists() and not (where / "state.json").exists():
        raise UserError(f"{flag}: not a saved DatasetDict (it has no dataset_dict.json); save one with save_to_disk")
    try:
        loaded = datasets.load_from_disk(str(where))
    except IndexError as error:  # what a saved data set without rows gives
        raise UserError(f"{flag}: the data set has no rows") from error
    except Exception as error:
        raise UserError(f"{flag}: cannot be read: {_first_line(error)}") from error
    return dict(loaded) if isinstance(loaded, dict) else {split: loaded}


def _read_json(where: Path) -> list[Any]:
    rows = json.loads(where.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError("expected a list of rows")
    return rows


def _read_jsonl(where: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(where.read_text(encoding="utf-8-sig").split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return rows


def _read_csv(where: Path) -> list[Any]:
    import pyarrow.csv

    options = pyarrow.csv.ParseOptions(newlines_in_values=True)  # prompts have them

    return cast(list[Any], pyarrow.csv.read_csv(where, parse_options=options).to_pylist())


def _read_parquet(where: Path) -> list[Any]:
    import pyarrow.parquet

    return cast(list[Any], pyarrow.parquet.read_table(where).to_pylist())


_READERS = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}


def _read_file(where: Path, flag: str) -> list[Row]:
    reader = _READERS.get(where.suffix)
    if reader is None:
        raise UserError(f"{flag}: unknown kind of file; use {', '.join(_READERS)} or a saved DatasetDict")
    try:
        rows = reader(where)
    except Exception as error:
        raise UserError(f"{flag}: cannot be read: {_first_line(error)}") from error
    if bad := next((number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)), None):
        raise UserError(f"{flag}: row {bad} is not an object with columns")
    return rows


def _read_hub(path: str, flag: str) -> dict[str, Rows]:
    import datasets

    parts = cast(re.Match[str], _HUB_ID.fullmatch(path))
    try:
        loaded = datasets.load_dataset(parts["name"], parts["config"], revision=parts["revision"])
    except Exception as error:
        raise UserError(
            f"{flag}: no such file or folder, and not readable from the Hub: {_first_line(error)}"
        ) from error
    return dict(loaded)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
