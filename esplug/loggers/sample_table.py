"""Evaluation samples as the tables that loggers show."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, TypeAlias

TableRow: TypeAlias = tuple[str, str, str, float, str]

COLUMNS = ("prompt", "target", "answer", "reward", "label")
_MOST_ROWS = 100  # ``eval-output/`` has all of them


@dataclass(frozen=True, slots=True)
class SampleTable:
    """The first samples of a split. Every evaluation asks the same prompts in the same order, so rows can be compared.

    Attributes:
        name: ``samples/<split>``.
        rows: at most 100, each with the cells that :data:`COLUMNS` names.
    """

    name: str
    rows: list[TableRow]


def sample_tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[SampleTable]:
    """Make a table of each split's samples, which follow each other."""
    for split, samples in groupby(rows, key=lambda row: row["split"]):
        yield SampleTable(f"samples/{split}", [_row(sample) for sample in islice(samples, _MOST_ROWS)])


def as_text(value: Any) -> str:
    """Return a prompt or target as it is where it is text, else as JSON: a column's cells are of one type."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _row(sample: Mapping[str, Any]) -> TableRow:
    prompt, target = as_text(sample["prompt"]), as_text(sample["target"])
    return prompt, target, sample["output"], sample["reward"], sample["label"]
