"""``esplug push``: upload a run's model to the Hugging Face Hub."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from esplug.cli.export import progress_bars
from esplug.cli.options import Debug
from esplug.errors import UserError
from esplug.utils.console import say
from esplug.utils.text import aligned, printable

if TYPE_CHECKING:
    from esplug.checkpoints.seed_log_records import Recorded
    from esplug.checkpoints.upload import UploadFile


def push(
    run_or_log: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, or its seeds.log.")],
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Repository on the Hub; created if needed.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    branch: Annotated[
        str | None,
        typer.Option("--branch", "--revision", metavar="NAME", help="Branch; created if needed.  \\[default: main]"),
    ] = None,
    iteration: Annotated[
        int | None, typer.Option(metavar="K", help="Number of updates to apply.  \\[default: all]")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model that the run started from.  \\[default: as in the log]"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes, without a network.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Upload a run's model with its model card to the Hugging Face Hub. Export the model first if needed."""
    from esplug.checkpoints.seed_log import read
    from esplug.checkpoints.starting_model import kind_of, log_file
    from esplug.checkpoints.upload import check_access, check_repo, upload
    from esplug.runs.summary import why_no_run

    check_repo(repo, "--repo")
    if kind_of(str(run_or_log)) != "log":
        raise UserError(f"{run_or_log}: {why_no_run(run_or_log)}")
    log = log_file(run_or_log)
    recorded = read(log, iteration)
    if iteration is not None and iteration < 1:
        raise UserError(f"--iteration {iteration}: must be 1 or more")
    if iteration is not None and iteration > len(recorded.steps):
        raise UserError(f"--iteration {iteration}: there are only {len(recorded.steps)} iterations in {log}")
    if not recorded.steps:
        raise UserError(f"{run_or_log}: no iteration is done yet, so there is nothing to upload")
    if not dry_run:
        check_access(repo, "--repo")
    with TemporaryDirectory(dir=log.absolute().parent, prefix=".push-", ignore_cleanup_errors=True) as scratch:
        files, left = _files(log, recorded, _local_base(recorded, base, dry_run), Path(scratch))
        if dry_run:
            _print_files(files, left)
            return
        checksum = recorded.steps[-1].checksum
        message = f"esplug: iteration {len(recorded.steps)}, checksum {checksum:016x}"
        say(f"uploaded {upload(files, repo, '--repo', message=message, private=private, branch=branch)}")


def _files(log: Path, recorded: "Recorded", base: str | None, scratch: Path) -> "tuple[list[UploadFile], list[str]]":
    """Return the files to upload and the names of others: of the saved model, or of one exported to ``scratch``."""
    from esplug.checkpoints.export import export
    from esplug.checkpoints.folders import verify
    from esplug.checkpoints.model_card import model_card
    from esplug.checkpoints.seed_log_format import FILE_NAME
    from esplug.checkpoints.upload import CARD, upload_files
    from esplug.runs.directory import RunDirectory

    count, run = len(recorded.steps), log.parent if log.name == FILE_NAME else None
    saved = RunDirectory(run).saved_model(count) if run else None
    if saved:
        verify(saved)
        card = model_card(recorded.header, count, recorded.steps[-1].checksum, run, saved / CARD, None)
        return upload_files(saved, card)
    with progress_bars() as progress:
        exported = export(run or log, scratch / "model", base=base, iteration=count, progress=progress)
    return upload_files(exported.folder)


def _local_base(recorded: "Recorded", base: str | None, dry_run: bool) -> str | None:
    """Return the base model to replay from. A dry run takes one from the Hub only if it has been downloaded."""
    from esplug.checkpoints.base_model import local_model_folder

    found = recorded.header.base
    if base is not None or not dry_run or not found.revision:
        return base
    local = local_model_folder(f"{found.name.partition('@')[0]}@{found.revision}", "--base")
    return str(local) if local else None


def _print_files(files: "list[UploadFile]", left: list[str]) -> None:
    rows = [(printable(file.name), f"{file.nbytes:,}") for file in files]
    total = sum(file.nbytes for file in files)
    say(aligned([("file", "bytes"), *rows, ("all", f"{total:,}")]))
    if left:
        say(printable(f"left out: {', '.join(left)}"))
    say("nothing was uploaded (--dry-run)")
