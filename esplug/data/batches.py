"""A task's data: its splits, checked and collated, and the batches drawn from them."""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, Literal

import numpy as np

from esplug.data.readers import SplitRows, named, place, read, sources
from esplug.errors import UserError
from esplug.hookspecs import Prompt, Row
from esplug.plugins.task import Task
from esplug.utils.text import cause, suggest

Split = Literal["train", "eval"]
Batch = tuple[list[Any], list[Any]]
_FLAGS: dict[Split, str] = {"train": "--train-dataset", "eval": "--eval-dataset"}


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

    Args:
        task: whose rows.
        path: one source that :func:`esplug.data.readers.read` takes; ``None`` for the task's own rows.
        batch_size: rows per batch, at most.
        seed: decides the order of the rows.

    Raises:
        UserError: the rows cannot be read, are empty, or lack a column; or ``path`` is not one source.
    """
    splits = _load(task, "train", path)
    name = "train" if len(splits) > 1 else next(iter(splits))
    if name not in splits:
        raise UserError(f"{_origin('train', path)}: no split 'train' among {', '.join(splits)}")
    return Batches(*_collated(task, name, splits[name], None), batch_size, seed)


def load_eval_splits(
    task: Task, path: str | None, limit: int | None, only: Sequence[str] = (), flag: str = "--splits"
) -> dict[str, list[Batch]]:
    """Read a task's evaluation rows: split name to batches, here one batch a split.

    Args:
        task: whose rows.
        path: sources that :func:`esplug.data.readers.read` takes, comma-separated; ``None`` for the task's own rows.
        limit: rows to keep of each split, the first ones; ``None`` for all.
        only: names of splits to keep; none named keeps all.
        flag: by which the user named them, for the error.

    Raises:
        UserError: the rows cannot be read, are empty, or lack a column; or there is no split of a name in ``only``.
    """
    splits = _load(task, "eval", path)
    for name in only:
        if name not in splits:
            hint = "; ".join(filter(None, ["no such split", suggest(name, splits)]))
            raise UserError(f"{flag} {name}: {hint} (splits: {', '.join(splits)})")
    return {name: [_collated(task, name, part, limit)] for name, part in splits.items() if not only or name in only}


def _load(task: Task, split: Split, path: str | None) -> dict[str, SplitRows]:
    """Ask the task for the rows of each source, and read what it leaves to esplug."""
    named_sources = [None] if path is None else sources(path)
    if split == "train" and len(named_sources) > 1:
        raise UserError(
            f"{_origin(split, path)}: training takes one data set, not {len(named_sources)}; name one of them, "
            "or join them into one file"
        )
    parts: list[SplitRows] = []
    for source in named_sources:
        rows = task.load_rows(split, source)
        if rows is None:
            if source is None:
                raise UserError(f"task {task.name!r} has no data of its own; name some with {_FLAGS[split]}")
            parts += read(source, _FLAGS[split])
            continue
        origin, holders = _origin(split, source), place(source) if source else ()
        own = rows if isinstance(rows, Mapping) else {split: rows}
        parts += [SplitRows(origin, (*holders, name), its_rows) for name, its_rows in own.items()]
    if not parts:
        raise UserError(f"{_origin(split, path)}: the data set has no splits")
    return named(parts)


def _origin(split: Split, path: str | None) -> str:
    """Name a data set in an error."""
    return f"{_FLAGS[split]} {path}" if path is not None else f"the task's own {split} data"


def _collated(task: Task, name: str, part: SplitRows, limit: int | None) -> Batch:
    """Collate a split's rows, and see that every one of them makes a prompt."""
    where = f"{part.origin}, split {name!r}"
    try:
        rows = list(islice(part.rows, limit))
    except Exception as error:  # a saved data set is read now, by a library that has many words for damage
        raise UserError(f"{where}: cannot be read [{cause(error)}]") from error
    if not rows:
        raise UserError(f"{part.origin}: the data set has no rows in its split {name!r}")
    try:
        questions, targets = task.collate(rows)
    except UserError as error:
        row = "" if re.search(r"\brow \d", str(error)) else f", row {_first_refused(task, rows)}"
        raise type(error)(f"{where}{row}: {error}") from error
    for number, question in enumerate(questions, start=1):
        try:
            _check_text(task.template(question))
        except UserError as error:
            raise type(error)(f"{where}, row {number}: {error}") from error
    return questions, targets


def _first_refused(task: Task, rows: Sequence[Row]) -> int:
    """Return the number, from 1, of the first row that the task refuses, or refuses after those before it."""

    def refused(number: int) -> bool:
        try:
            task.collate(rows[:number])
        except UserError:
            return True
        return False

    return 1 + bisect_left(range(1, len(rows)), True, key=refused)


def _check_text(prompt: Prompt) -> None:
    texts = [prompt] if isinstance(prompt, str) else [str(message["content"]) for message in prompt]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character: \ud83d
        raise UserError(f"the prompt holds {error.object[error.start]!r}, which is no character") from error
