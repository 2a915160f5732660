"""Helpers of the loggers that write to a service: package checks, run identities and tables of samples."""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeAlias

from esplug.errors import PluginError

TableRow: TypeAlias = tuple[str, str, str, float, str]

COLUMNS = ("prompt", "target", "answer", "reward", "label")
_MOST_ROWS = 100  # ``eval-output/`` has all samples


def require(extra: str) -> None:
    """Check, without importing it, that a package is installed; the logger and esplug's extra have the same name."""
    if find_spec(extra) is None:
        raise PluginError(f'logger {extra!r} needs the package {extra}: pip install "esplug[{extra}]"')


def stored_identity(path: Path, fresh: str) -> str:
    """Return the run's identity for a service from the file, or store ``fresh`` there if the file is missing."""
    if not path.exists():
        path.write_text(f"{fresh}\n")
    return path.read_text().strip()


def sample_tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[TableRow]]:
    """Return the first 100 samples of each split as rows of :data:`COLUMNS`, by ``samples/<split>``.

    The samples of a split must be adjacent. All evaluations have the same prompts in the same order.
    """
    return {
        f"samples/{split}": [_table_row(sample) for sample in islice(samples, _MOST_ROWS)]
        for split, samples in groupby(rows, key=lambda row: row["split"])
    }


def as_text(value: Any) -> str:
    """Return text as it is and anything else as JSON, because all cells of a column must have one type."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _table_row(sample: Mapping[str, Any]) -> TableRow:
    said = [f"{each['role']}: {each['content']}" for each in sample.get("conversation", ())]
    answer = "\n".join(said) or sample["output"]
    return as_text(sample["prompt"]), as_text(sample["target"]), answer, sample["reward"], sample["label"]
