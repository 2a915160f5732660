"""Logger checks: short simulated runs with unusual metrics and samples."""

import contextlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import pluggy

from esplug.authoring.conformance.checklist import Check, Checklist, Fault, Report, loads, resolved
from esplug.config import make_config
from esplug.events import EvaluationEnd, IterationEnd, RunEnd, Status
from esplug.loggers.logger_set import LoggerSet, is_synchronous

_Rows: TypeAlias = Sequence[Mapping[str, Any]]

_SLOW = 1.0  # seconds that one call of a synchronous logger may take
_CONFIG = {"task": "custom", "n_iterations": 4, "eval_freq": 2, "experiment_name": "check"}
_METRICS = {
    "train/reward/mean": 0.25,
    "train/reward/std": 0.1,
    "time/iteration": 58.0,
    "eval/held_out/pass@1/mean": 0.5,
}
_ODD_METRICS = {
    "nan": math.nan,
    "infinite": -math.inf,
    "huge": 1e308,
    "tiny": 5e-324,
    "a NumPy number": np.float64(0.1),
    "an integer": 2**60,
    "eval/pr\N{LATIN SMALL LETTER U WITH DIAERESIS}fung \N{PILE OF POO}/pass@1/mean": 0.5,
    "a/name/with,commas;'quotes\"and\ttabs": 1.0,
    "train/label/[red]\x1b[31m": 1.0,
}
_SAMPLE = {
    **{"split": "held_out", "index": 0, "sample": 0, "prompt": "2 + 2 =", "target": "4", "output": " 4"},
    **{"reward": 1.0, "label": "right", "correct": True, "passed": True, "tokens": 2, "finished": True},
}
_ODD_SAMPLES: list[dict[str, Any]] = [
    {**_SAMPLE, "target": None, "correct": None, "reward": -1e100, "output": ""},
    {**_SAMPLE, "target": {"numbers": [1, 2], "sum": 3.0}, "metrics": {"format": 0.5}},
    {
        **_SAMPLE,
        "output": "</script><b>|`\\[red]\x00\x1b[31m\r\n\N{PILE OF POO}\N{RIGHT-TO-LEFT OVERRIDE}",
        "label": "",
    },
    {**_SAMPLE, "conversation": [{"role": role, "content": "<b>"} for role in ("assistant", "user")], "ended": "task"},
    {**_SAMPLE, "split": "a/b", "output": "word " * 50_000},
]


def logger_checks(plugin: object, report: Report | None = None) -> list[Check]:
    """Check a logger as :func:`esplug.testing.check_logger` does, and return failed checks too."""
    checks = Checklist(report)
    info, load = resolved("logger", plugin)
    if checks.run("loads", partial(loads, load)) is None:
        return checks.results
    with tempfile.TemporaryDirectory(prefix="esplug-check-") as folder:
        run_dir, elsewhere = Path(folder, "run"), Path(folder, "elsewhere")
        run_dir.mkdir()
        elsewhere.mkdir()
        run = partial(_run, info.name, load, run_dir)
        with contextlib.chdir(elsewhere):
            if checks.run("a run", partial(run, [_METRICS], [_SAMPLE])) is None:
                return checks.results
            checks.run("a resumed run", partial(run, [_METRICS], [_SAMPLE], iteration=1))
            checks.run("no samples", partial(run, [_METRICS, {}], []))
            checks.run("odd metrics", partial(run, [{name: value} for name, value in _ODD_METRICS.items()], [_SAMPLE]))
            checks.run("odd samples", partial(run, [_METRICS], _ODD_SAMPLES))
            ends: tuple[Status, ...] = ("failed", "interrupted")
            for status in ends:
                checks.run(f"a run that ends as {status}", partial(run, [_METRICS], [], status=status))
        checks.run("files", partial(_files, run_dir, elsewhere))
    return checks.results


def _run(
    name: str,
    load: Any,
    run_dir: Path,
    metrics: _Rows,
    samples: _Rows,
    *,
    iteration: int = 0,
    status: Status = "finished",
) -> tuple[bool, str]:
    """Simulate a run of a few calls. A warning of the run is a fault."""
    warnings = _Warnings()
    logger = logging.getLogger("esplug")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(warnings)
    seconds: list[float] = []  # of the calls that delay the run
    try:
        relay: pluggy.HookRelay = load()
        loggers = LoggerSet([], {name: relay})
        start = _seconds(loggers.start, make_config(_CONFIG), run_dir, iteration)
        seconds += [_seconds(loggers.log, step, row) for step, row in enumerate(metrics, start=iteration)]
        for _, rows in groupby(samples, itemgetter("split")):  # one call per split, as in a run
            seconds.append(_seconds(loggers.samples, iteration + len(metrics), list(rows)))
        loggers.iteration_end(partial(_iteration_end, iteration))
        loggers.evaluation_end(partial(_evaluation_end, iteration + 1, samples))
        loggers.run_end(RunEnd(status, "", iteration + 1, 0, run_dir))
        finish = _seconds(loggers.finish, status)
        seconds += [start, finish] if is_synchronous(relay) else []
    finally:
        logger.removeHandler(warnings)
        logger.propagate = propagates
    if warnings.lines:
        raise Fault("; ".join(warnings.lines))
    if (slowest := max(seconds)) > _SLOW:
        raise Fault(f"one call delayed the run by {slowest:.1f} s; leave out synchronous = True")
    return True, f"start, log, samples, events, finish; delayed the run by {slowest:.2g} s at most"


def _iteration_end(number: int) -> IterationEnd:
    rewards, utilities = np.array([[0.5, 0.25], [0.0, 0.25]]), np.array([1.0, -1.0])
    return IterationEnd(number, rewards, utilities, (0.0005, -0.0005), 2**63, MappingProxyType(_METRICS))


def _evaluation_end(updates: int, samples: _Rows) -> EvaluationEnd:
    names = [f"eval/{split}/{figure}/mean" for split in ("average", "held_out") for figure in ("reward", "pass@1")]
    metrics = MappingProxyType(dict.fromkeys(names, 0.5))
    return EvaluationEnd(updates, metrics, ((0, metrics),) if updates else (), tuple(samples))


def _seconds(call: Any, *arguments: Any) -> float:
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _files(run_dir: Path, elsewhere: Path) -> tuple[bool, str]:
    """List the files in the run directory, and check that the working directory is empty."""
    if astray := os.listdir(elsewhere):
        raise Fault(f"{', '.join(sorted(astray))} written to the working directory; write to run_dir only")
    written = sorted(os.listdir(run_dir))
    return True, f"in the run directory: {', '.join(written) or 'none'}; in the working directory: none"
