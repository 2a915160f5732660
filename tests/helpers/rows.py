"""Rows, a task that reads them, and the ways to save them."""

import json
from pathlib import Path

from esplug import hookimpl
from esplug.data.batches import load_eval_splits
from esplug.data.sources import list_sources, name_splits, read
from esplug.plugins import PluginInfo
from esplug.plugins.loading import relay
from esplug.plugins.task import Task

ROWS = [{"q": "one", "a": 1}, {"q": "zwei, drei", "a": 23}, {"q": 'vier "4" ä\u4e94', "a": -4}]


class Toy:
    """A task with ``own`` data; esplug reads all other sources."""

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
    """Return the rows of every split of every source, by name."""
    parts = [part for source in list_sources(path) for part in read(source, f"--{split}-dataset")]
    return {name: part.rows for name, part in name_splits(parts).items()}


def names(path) -> list[str]:
    return list(load_eval_splits(task(), str(path), None))


def write(folder: Path, kind: str, rows=ROWS) -> Path:
    """Save rows as a source of this kind."""
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
