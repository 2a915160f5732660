"""Summary of a run, read quickly from its directory even if files are missing or damaged."""

import json
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from esplug.errors import UserError
from esplug.loggers.metrics_file import FILE_NAME, Row, by_step, read_bytes, rows_of, seconds_of
from esplug.runs.directory import RunDirectory
from esplug.utils.file_lock import is_held

State = Literal["running", "finished", "stopped", "evaluated", "interrupted", "failed", "damaged"]
_ENDED: tuple[State, ...] = ("finished", "stopped", "interrupted", "failed")


@dataclass(frozen=True, slots=True)
class Score:
    """An evaluation's main figure with its 95% interval.

    Attributes:
        figure: ``pass@1``, or ``reward`` if the task does not say which answers are correct.
        iteration: number of updates before the evaluation.
    """

    figure: str
    iteration: int
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class RunSummary:
    """State and scores of a run.

    Attributes:
        state: ``evaluated`` if the run finished and had no iterations; ``damaged`` if its settings cannot be read.
        reason: why the run stopped early, failed or is damaged, if known.
        iterations: number of updates in the seed log.
        planned: number of updates that the settings ask for.
        seconds: time spent in iterations and evaluations.
        notes, tags: of the run's settings.
        changed: time of the last write, in Unix seconds.
        unchanged: why the updates left the weights as they were, and what to try; ``""`` if they moved them, or if
            there are none.
    """

    path: Path
    name: str
    state: State
    reason: str
    iterations: int
    planned: int | None
    task: str
    model: str
    first: Score | None
    last: Score | None
    best: Score | None
    seconds: float
    changed: float
    unchanged: str
    notes: str = ""
    tags: tuple[str, ...] = ()


def is_run(path: Path) -> bool:
    """Whether a directory is that of a run; false if it cannot be read."""
    run = RunDirectory(path)
    with suppress(OSError):
        return any(file.is_file() for file in (run.config, run.seed_log, path / FILE_NAME))
    return False


def find_runs(folder: Path) -> list[Path]:
    """Return the runs in a folder, including those of ``esplug eval --compare`` one level deeper.

    Skips hidden folders, such as a dry run's. Raises ``OSError`` if the folder cannot be read.
    """
    found: list[Path] = []
    for child in _folders(folder):
        with suppress(OSError):  # not readable for this user
            found += [child] if is_run(child) else filter(is_run, _folders(child))
    return found


def why_no_run(path: Path) -> str:
    """Describe what is wrong with a path that is not a run's directory, and suggest the nearest runs."""
    from difflib import get_close_matches

    fault = "not a run's directory" if path.is_dir() else "not a directory" if path.exists() else "no such directory"
    known: dict[str, Path] = {}
    for folder in (path, path.parent, Path("experiments")):
        try:
            found = find_runs(folder)
        except OSError:
            continue
        for run in found:
            known.setdefault(run.name, run)
    near = get_close_matches(path.name, known, n=3, cutoff=0.5) or (sorted(known)[:3] if path.is_dir() else [])
    if near:
        return f"{fault}; did you mean {' or '.join(str(known[name]) for name in near)}?"
    return f"{fault}; `esplug runs` lists those there are"


def summarise(path: Path) -> RunSummary:
    """Summarise the run in a directory."""
    run, metrics = RunDirectory(path), read_bytes(path / FILE_NAME)
    settings, fault = read_settings(path)
    results, status = read_json(path / "results.json"), read_json(run.status)
    scores = scores_of(by_step(rows_of(metrics, b'"eval/average/')[0], "eval/average/"), main_figure(results))
    planned = settings.get("n_iterations")
    planned = planned if isinstance(planned, int) else None
    return RunSummary(
        path=path,
        name=path.resolve().name,
        state="damaged" if fault else _state(run, planned, results, status),
        reason=fault or str(status.get("reason") or ""),
        iterations=_iterations(run.seed_log),
        planned=planned,
        task=str(settings.get("task", "")),
        model=str(settings.get("checkpoint") or settings.get("model_name", "")),
        first=scores[0] if scores else None,
        last=scores[-1] if scores else None,
        best=max(scores, key=lambda score: score.mean, default=None),
        seconds=seconds_of(metrics),
        changed=_changed(run),
        unchanged=_unchanged(run.seed_log),
        notes=str(settings.get("notes") or ""),
        tags=tuple(map(str, tags)) if isinstance(tags := settings.get("tags"), list) else (),
    )


def read_settings(path: Path) -> tuple[dict[str, Any], str]:
    """Read a run's ``config.toml`` without validating it. Also return what is wrong with the file, or ``""``."""
    try:
        with RunDirectory(path).config.open("rb") as file:
            return tomllib.load(file), ""
    except OSError as error:
        return {}, f"config.toml cannot be read ({error.strerror or error})"
    except (ValueError, RecursionError):
        return {}, "config.toml is not TOML"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return ``{}`` if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def main_figure(results: Mapping[str, Any]) -> str:
    """Return the name of the run's main figure: pass@1, or the reward if it decides which answers pass."""
    splits = results.get("splits")
    splits = splits.values() if isinstance(splits, Mapping) else ()
    by_reward = (isinstance(each, Mapping) and str(each.get("passes")).startswith("reward") for each in splits)
    return "reward" if any(by_reward) else "pass@1"


def scores_of(rows: tuple[Row, ...], figure: str, split: str = "average") -> list[Score]:
    """Return a split's scores in the order of evaluations; the mean replaces missing bounds."""
    found = []
    for row in rows:
        root = f"eval/{split}/{figure}"
        mean = row.get(f"{root}/mean")
        if mean is not None:
            low, high = (row.values.get(f"{root}/ci95_{bound}", mean) for bound in ("low", "high"))
            found.append(Score(figure, row.step, mean, low, high))
    return found


def duration(seconds: float) -> str:
    """Format a duration, such as ``4.8 s``, ``48 s``, ``4 min 40 s`` or ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _state(run: RunDirectory, planned: int | None, results: Mapping[str, Any], status: Mapping[str, Any]) -> State:
    """Return the state of a run. After ``kill -9`` the status is missing, so it is derived from the other files."""
    ended = next((state for state in _ENDED if status.get("status") == state), None)
    held = is_held(run.path)
    if held or (held is None and ended is None):  # a resumed run still has its earlier status
        return "running"
    if ended is None:
        ended = "finished" if planned is not None and results.get("iteration") == planned else "interrupted"
    return "evaluated" if ended == "finished" and planned == 0 else ended


def _iterations(seed_log: Path) -> int:
    from esplug.checkpoints.seed_log_format import count_records  # imports NumPy

    with suppress(OSError):
        return count_records(seed_log)
    return 0


def _unchanged(seed_log: Path) -> str:
    from esplug.checkpoints.seed_log_format import scan
    from esplug.checkpoints.seed_log_records import why_unchanged

    with suppress(OSError, UserError):  # missing or damaged
        log = scan(seed_log)[0]
        return why_unchanged(log.header.base.weights_checksum, log.steps)
    return ""


def _changed(run: RunDirectory) -> float:
    times = [0.0]
    for file in (run.config, run.seed_log, run.status, run.path / FILE_NAME, run.path / "results.json"):
        with suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times)
