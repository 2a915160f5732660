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
    tags: Annotated[
        list[str] | None, typer.Option("--tag", metavar="NAME", help="List only runs with this tag. Repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs in an output directory: state, iterations, first and best evaluation, time, tags and notes."""
    from esplug.runs.summary import find_runs, is_run, summarise

    try:
        paths = [directory] if is_run(directory) else find_runs(directory)
    except OSError as error:
        fault = f"{directory}: cannot be listed ({error.strerror or error})"
        remedy = "name the --output-directory of your runs, or make one with `esplug train`"
        raise UserError(f"{fault}; {remedy}") from error
    wanted = set(tags or ())
    found = [run for run in map(summarise, paths) if wanted <= set(run.tags)]
    found.sort(key=lambda run: run.changed, reverse=True)
    if as_json:
        print(json.dumps([{**asdict(run), "path": str(run.path)} for run in found], indent=2))
    elif found:
        extra = [name for name in ("tags", "notes", "reason") if any(getattr(run, name) for run in found)]
        print(aligned([(*_COLUMNS, *extra), *(_row(run, directory, extra) for run in found)]))
    elif paths and wanted:
        print(printable(f"no runs in {directory} have the tag {' and '.join(sorted(wanted))}"))
    else:
        print(printable(f"no runs in {directory}; make one with `esplug train`, or name another directory"))


def _row(run: "RunSummary", directory: Path, extra: list[str]) -> tuple[str, ...]:
    from esplug.runs.summary import duration

    planned = "?" if run.planned is None else run.planned
    more = {"tags": ", ".join(run.tags), "notes": brief(run.notes, 100), "reason": run.reason}
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
        *(_cell(more[name]) for name in extra),
    )


def _cell(text: str) -> str:
    """Put an untrusted name into one line of printable characters."""
    return brief(printable(text))
