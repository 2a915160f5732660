"""``esplug runs``: list the runs in an output directory, the latest first."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esplug.cli.options import AsJson
from esplug.errors import UserError
from esplug.utils.text import aligned, brief, printable

if TYPE_CHECKING:
    from esplug.runs.summary import RunSummary

_COLUMNS = ("run", "state", "iterations", "task", "model", "first", "best [95% interval]", "time", "last change")


def runs(
    directory: Annotated[Path, typer.Argument(help="Directory of the runs.")] = Path("experiments"),
    as_json: AsJson = False,
) -> None:
    """List the runs in an output directory: state, iterations, first and best evaluation, time."""
    from esplug.runs.summary import find_runs, is_run, summarise

    try:
        paths = [directory] if is_run(directory) else find_runs(directory)
    except OSError as error:
        fault = f"{directory}: cannot be listed ({error.strerror or error})"
        remedy = "name the --output-directory of your runs, or make one with `esplug train`"
        raise UserError(f"{fault}; {remedy}") from error
    found = sorted(map(summarise, paths), key=lambda run: run.changed, reverse=True)
    if as_json:
        print(json.dumps([{**asdict(run), "path": str(run.path)} for run in found], indent=2))
    elif found:
        print(aligned([_COLUMNS, *(_row(run, directory) for run in found)]))
    else:
        print(printable(f"no runs in {directory}; make one with `esplug train`, or name another directory"))


def _row(run: "RunSummary", directory: Path) -> tuple[str, ...]:
    from esplug.runs.summary import duration

    planned = "?" if run.planned is None else run.planned
    return (
        _cell(run.name if run.path == directory else str(run.path.relative_to(directory))),
        f"{run.state}, nothing learnt" if run.unchanged else run.state,
        f"{run.iterations}/{planned}" if run.planned != 0 else "",
        _cell(run.task),
        _cell(Path(run.model).name),
        f"{run.first.mean:.3f}" if run.first else "",
        f"{run.best} {run.best.figure}" if run.best else "",
        duration(run.seconds),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed)),
    )


def _cell(text: str) -> str:
    """Put an untrusted name into one line of printable characters."""
    return brief(printable(text))
