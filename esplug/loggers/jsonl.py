"""Logger ``jsonl``: one JSON object per line in ``metrics.jsonl`` in the run directory.

A line is ``{"step": 3, "time": 1767225600.0, "train/reward/mean": 0.31, ...}``, with ``time`` in Unix seconds. NaN and
infinity become ``null``, because JSON has neither.

Each row is on disk when ``log`` returns. A resumed run appends to the file. It first moves unreadable lines and the
rows that it will write again to ``metrics.replaced.jsonl``, so that ``metrics.jsonl`` has each step once.
"""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from esplug.config import RunConfig
from esplug.hookspecs import hookimpl
from esplug.loggers.metrics_file import FILE_NAME, is_logged_again, read_row
from esplug.utils import atomic_write
from esplug.utils.json_files import strict_json


class JsonlLogger:
    """One run's ``metrics.jsonl``."""

    synchronous = True  # a row must not be lost, and takes milliseconds to write

    def __init__(self) -> None:
        self._path = Path(FILE_NAME)

    @hookimpl
    def start(self, config: RunConfig, run_dir: Path, iteration: int) -> None:
        """Open the file, and move aside the rows that will be written again. Fails now if it cannot be written."""
        self._path = run_dir / FILE_NAME
        self._path.open("ab").close()
        data = self._path.read_bytes()
        kept, replaced = list[bytes](), list[bytes]()
        for line in data.splitlines():
            row = read_row(line)
            keep = row is not None and not is_logged_again(row["step"], row, config, iteration)
            (kept if keep else replaced).append(line)
        if replaced:  # copy them first, so that a kill in between loses nothing
            aside = self._path.with_name("metrics.replaced.jsonl")
            before = aside.read_bytes().splitlines() if aside.exists() else []
            atomic_write.write(aside, _text([*before, *replaced]))
        if _text(kept) != data:
            atomic_write.write(self._path, _text(kept))

    @hookimpl
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a row."""
        values = {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}  # NumPy's
        row = {"step": step, "time": time.time(), **strict_json(values)}
        atomic_write.append(self._path, json.dumps(row, allow_nan=False).encode() + b"\n")


def _text(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)
