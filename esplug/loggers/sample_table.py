"""Tables of evaluation samples, for loggers that show tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, TypeAlias

TableRow: TypeAlias = tuple[str, str, str, float, str]

COLUMNS = ("prompt", "target", "answer", "reward", "label")
_MOST_ROWS = 100  # ``eval-output/`` has all samples


@dataclass(frozen=True, slots=True)
class SampleTable:
    """The first samples of a split. All evaluations have the same prompts in the same order.

    Attributes:
        name: ``samples/<split>``.
        rows: at most 100 rows, with one cell for each of :data:`COLUMNS`.
    """

    name: str
    rows: list[TableRow]


def sample_tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[SampleTable]:
    """Yield a table for each split. The samples of a split must be adjacent."""
    for split, samples in groupby(rows, key=lambda row: row["split"]):
        yield SampleTable(f"samples/{split}", [_row(sample) for sample in islice(samples, _MOST_ROWS)])


def as_text(value: Any) -> str:
    """Return text as it is and anything else as JSON, because all cells of a column must have one type."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _row(sample: Mapping[str, Any]) -> TableRow:
    prompt, target = as_text(sample["prompt"]), as_text(sample["target"])
    return prompt, target, sample["output"], sample["reward"], sample["label"]
