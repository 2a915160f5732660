"""``esplug export``: write the model of any iteration, from the run's seed log."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esplug.cli.options import Debug
from esplug.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from esplug.checkpoints.replay import Progress
    from esplug.checkpoints.replayed_model import Exported


def export(
    run_or_log: Annotated[Path, typer.Argument(metavar="RUN_OR_LOG", help="Directory of a run, or its seeds.log.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to create.")],
    iteration: Annotated[
        int | None, typer.Option(metavar="K", help="Number of updates to apply; 0 for none.  \\[default: all]")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="bfloat16|float16|float32", help="Dtype of the weights.  \\[default: the base model's]"),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model, run or file that the run started from.  \\[default: as in the log]",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO", help="Upload the folder to this Hub repository.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the model of any iteration as a Hugging Face folder, from the run's seed log and the base model."""
    from typing import cast

    from esplug.checkpoints.export import export as export_model
    from esplug.checkpoints.tensor_files import Dtype
    from esplug.utils.console import say

    if push_to_hub is not None:
        from esplug.checkpoints.upload import check_repo

        check_repo(push_to_hub, "--push-to-hub")
    with progress_bars() as progress:
        checked_later = cast(Dtype | None, dtype)
        exported = export_model(run_or_log, out, base=base, iteration=iteration, dtype=checked_later, progress=progress)
    if exported.torn:
        say("the log's last record is torn, as after a crash, and was left out")
    say(f"model          {exported.folder}")
    say(f"iteration      {exported.iteration}")
    say(f"weights        {exported.nbytes / 1e9:.2f} GB, checksum {exported.checksum:016x}")
    say(f"to serve it    esplug serve {shlex.quote(str(exported.folder))}")
    if push_to_hub is not None:
        say(f"uploaded       {push(exported, push_to_hub)}")


def push(exported: "Exported", repo: str) -> str:
    """Upload an exported model to the Hub, and return its address."""
    from esplug.checkpoints.upload import upload, upload_files

    message = f"esplug: iteration {exported.iteration}, checksum {exported.checksum:016x}"
    try:
        return upload(upload_files(exported.folder)[0], repo, "--push-to-hub", message=message)
    except UserError as error:
        raise UserError(f"{error}; the model is in {exported.folder}") from error


@contextmanager
def progress_bars() -> "Iterator[Progress]":
    """Show the progress of an export on a terminal."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from esplug.utils.console import get_console

    columns = (TextColumn("{task.description:<18}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = get_console()
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield _progress_on(bars)


def _progress_on(bars: "Bars") -> "Progress":
    """Return a function that shows each kind of work as a bar of its own."""
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done)

    return show
