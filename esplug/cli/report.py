"""``esplug report``: write one page about a run, or one that compares several; or serve it while they run."""

from pathlib import Path
from typing import Annotated

import typer

from esplug.cli.options import Debug
from esplug.errors import UserError

_DEFAULT_PORT = 8642


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; several are compared.")],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Page to write.  \\[default: RUN/report.html; for several runs ./report.html]"
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Include every answer and every point; the page may exceed 1 MB.")
    ] = False,
    smooth: Annotated[
        float, typer.Option(metavar="WEIGHT", help="Smoothing that training curves start with, from 0 to 0.99.")
    ] = 0.0,
    png: Annotated[bool, typer.Option("--png", help="Also write the figures as PNG files beside the page.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the page on this machine and keep it up to date, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(metavar="INT", help="Port of --watch; 0 for any free one.  \\[default: 8642]")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page: curves, times, samples before and after, settings."""
    from esplug.runs.summary import is_run, why_no_run
    from esplug.utils.file_lock import is_held

    if not 0 <= smooth <= 0.99:
        raise UserError(f"--smooth {smooth:g}: must be a number from 0 to 0.99")
    if port is not None and not watch:
        raise UserError("--port is for --watch, which is missing")
    for run in runs:
        if not is_run(run) and not (watch and is_held(run)):  # a run that has just begun has no files
            raise UserError(f"{run}: {why_no_run(run)}")
    if watch:
        for flag, given in (("--output", output), ("--png", png)):
            if given:
                raise UserError(f"{flag} writes a file and --watch writes none; leave one of the two out")
        _serve(runs, _DEFAULT_PORT if port is None else port, smooth, full)
        return
    from esplug.report.figures import compared, of_one
    from esplug.report.page import render
    from esplug.report.run_data import read_runs
    from esplug.utils import atomic_write
    from esplug.utils.text import printable

    page = output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    found = read_runs(runs)
    panels = compared(found) if len(found) > 1 else of_one(found[0])
    try:
        atomic_write.write(page, render(found, panels, smoothing=smooth, full=full).encode(errors="backslashreplace"))
    except OSError as error:
        raise UserError(f"{page}: cannot be written ({error.strerror or error}); name a file with --output") from error
    print(printable(str(page)))
    if png:
        from esplug.report.png import write_pngs

        print(*(printable(str(picture)) for picture in write_pngs(panels, page, smooth)), sep="\n")


def _serve(runs: list[Path], port: int, smooth: float, full: bool) -> None:
    """Serve the page until Ctrl-C, which raises ``KeyboardInterrupt``."""
    from esplug.report.live import LiveReport, LiveServer
    from esplug.utils.console import say
    from esplug.utils.text import printable

    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: must be from 0 to 65535")
    with LiveServer(LiveReport(runs, smoothing=smooth, full=full), port) as server:
        say(f"{server.url} shows {printable(', '.join(map(str, runs)))}; Ctrl-C ends it")
        server.serve_forever()
