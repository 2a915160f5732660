"""Batches of a task's rows: loads, checks and collates its splits, and draws training batches."""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, Literal

import numpy as np

from esplug.data.sources import SplitRows, list_sources, name_splits, read, source_names
from esplug.errors import UserError
from esplug.hookspecs import Prompt, Row
from esplug.plugins.task import Task
from esplug.utils.text import cause, suggest

Split = Literal["train", "eval"]
Batch = tuple[list[Any], list[Any]]
_FLAGS: dict[Split, str] = {"train": "--train-dataset", "eval": "--eval-dataset"}


class Batches:
    """An endless, reproducible stream of ``(prompts, targets)`` batches of at most ``batch_size`` rows.

    Each pass over the rows shuffles them again, with an order that depends only on the seed. Passes are joined, so
    that every batch is full. Each ``iter()`` starts from the beginning.
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
    """Read a task's training rows and return their batches.

    ``path`` is one source for :func:`esplug.data.sources.read`; ``None`` for the task's own rows.

    Raises:
        UserError: the rows cannot be read, are empty, or lack a column; or ``path`` names several sources.
    """
    splits = _load(task, "train", path)
    name = "train" if len(splits) > 1 else next(iter(splits))
    if name not in splits:
        raise UserError(f"{_origin('train', path)}: no split 'train' among {', '.join(splits)}")
    return Batches(*_collated(task, name, splits[name], None), batch_size, seed)


def load_eval_splits(
    task: Task, path: str | None, limit: int | None, only: Sequence[str] = (), flag: str = "--splits"
) -> dict[str, list[Batch]]:
    """Read a task's evaluation rows. Returns the batches of each split by name, here one batch per split.

    Args:
        task: reads the rows.
        path: comma-separated sources for :func:`esplug.data.sources.read`; ``None`` for the task's own rows.
        limit: number of rows to keep from the start of each split; ``None`` for all.
        only: names of the splits to keep; an empty sequence keeps all.
        flag: flag of ``only``, for error messages.

    Raises:
        UserError: the rows cannot be read, are empty, or lack a column; or a split in ``only`` does not exist.
    """
    splits = _load(task, "eval", path)
    for name in only:
        if name not in splits:
            hint = "; ".join(filter(None, ["no such split", suggest(name, splits)]))
            raise UserError(f"{flag} {name}: {hint} (splits: {', '.join(splits)})")
    return {name: [_collated(task, name, part, limit)] for name, part in splits.items() if not only or name in only}


def _load(task: Task, split: Split, path: str | None) -> dict[str, SplitRows]:
    """Get the rows of each source from the task, or read the source if the task returns ``None``."""
    sources = [None] if path is None else list_sources(path)
    if split == "train" and len(sources) > 1:
        raise UserError(
            f"{_origin(split, path)}: training takes one data set, not {len(sources)}; give one of them, "
            "or join them into one file"
        )
    parts: list[SplitRows] = []
    for source in sources:
        rows = task.load_rows(split, source)
        if rows is not None:
            outer = source_names(source) if source else ()
            own = rows if isinstance(rows, Mapping) else {split: rows}
            parts += [SplitRows(_origin(split, source), (*outer, name), part) for name, part in own.items()]
        elif source is None:
            raise UserError(f"task {task.name!r} has no data of its own; give some with {_FLAGS[split]}")
        else:
            parts += read(source, _FLAGS[split])
    if not parts:
        raise UserError(f"{_origin(split, path)}: the data set has no splits")
    return name_splits(parts)


def _origin(split: Split, path: str | None) -> str:
    """Return how error messages name a data set."""
    return f"{_FLAGS[split]} {path}" if path is not None else f"the task's own {split} data"


def _collated(task: Task, name: str, part: SplitRows, limit: int | None) -> Batch:
    """Collate a split's rows, and check that each of them has a valid prompt."""
    where = f"{part.origin}, split {name!r}"
    try:
        rows = list(islice(part.rows, limit))
    except Exception as error:  # rows are read lazily, and damage raises many types of errors
        raise UserError(f"{where}: cannot be read [{cause(error)}]") from error
    if not rows:
        raise UserError(f"{part.origin}: the data set has no rows in its split {name!r}")
    try:
        questions, targets = task.collate(rows)
    except UserError as error:
        row = "" if re.search(r"\brow \d", str(error)) else f", row {_first_rejected(task, rows)}"
        raise type(error)(f"{where}{row}: {error}") from error
    for number, question in enumerate(questions, start=1):
        try:
            _check_text(task.template(question))
        except UserError as error:
            raise type(error)(f"{where}, row {number}: {error}") from error
    return questions, targets


def _first_rejected(task: Task, rows: Sequence[Row]) -> int:
    """Return the number, from 1, of the first row with which the task cannot collate the rows up to it."""

    def rejected(number: int) -> bool:
        try:
            task.collate(rows[:number])
        except UserError:
            return True
        return False

    return 1 + bisect_left(range(1, len(rows)), True, key=rejected)


def _check_text(prompt: Prompt) -> None:
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair: \ud83d
        raise UserError(f"the prompt holds {error.object[error.start]!r}, which is not a character") from error
