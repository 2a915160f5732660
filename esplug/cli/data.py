"""``esplug data``: list the data sets that can be built, and build one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esplug.cli.options import Debug, command_group, plugin_names
from esplug.utils.text import aligned, brief, printable

if TYPE_CHECKING:
    from esplug.data.build import Built

app = command_group("Build data sets for training and evaluation.")
_QUESTION_WIDTH, _ANSWER_WIDTH = 100, 30  # characters of an example


def _folder(name: str | Path) -> Path:
    """Parse the name of a folder that exists or can be created."""
    try:
        folder = Path(name).expanduser()
        other = folder.exists() and not folder.is_dir()
    except (OSError, RuntimeError) as error:  # the name is too long, or has an unknown user's home
        raise typer.BadParameter(f"{brief(repr(str(name)))}: {getattr(error, 'strerror', None) or error}") from error
    if other or not str(name).strip() or len(str(name).splitlines()) != 1:
        raise typer.BadParameter(f"{str(name)!r} is not a folder")
    return folder


Out = Annotated[Path, typer.Option("--out", metavar="DIR", parser=_folder, help="Folder for data sets.")]


@app.command(name="list")
def list_datasets(
    out: Out = Path("datasets"),
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="List the kinds of questions that this task can ask instead, with an example of each.",
            autocompletion=plugin_names("task"),
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """List the data sets that installed packages can build, without importing them."""
    from esplug.data.build import folders
    from esplug.plugins import PUBLISHED, list_plugins

    if task is not None:
        _print_examples(task)
        return
    rows = [("name", "distribution", "version", "built")]
    for plugin in list_plugins():
        if plugin.kind == "dataset":
            built = [str(folder) for folder in folders(plugin.name, out) if folder.is_dir()]
            rows.append((plugin.name, plugin.distribution, plugin.version, ", ".join(built) or "-"))
    typer.echo(aligned(rows))
    if len(rows) == 1:
        typer.echo(f"No data set is installed. Try: pip install {PUBLISHED['dataset']['math']}")


def _print_examples(task: str) -> None:
    from esplug.plugins.task import examples

    shown = [
        (printable(one.name), _cut(one.question, _QUESTION_WIDTH), _cut(one.answer, _ANSWER_WIDTH) or "-")
        for one in examples(task)
    ]
    typer.echo(aligned([("name", "question", "answer"), *shown]))


def _cut(text: str, longest: int) -> str:
    """Put any text into one line, and cut off its end if it is long."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= longest else f"{line[: longest - 4]} ..."


@app.command(name="build")
def build_dataset(
    name: Annotated[
        str, typer.Argument(help="Data set, as `esplug data list` names it.", autocompletion=plugin_names("dataset"))
    ],
    out: Out = Path("datasets"),
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=_folder,
            help="Read Hub data sets from DIR/OWNER/NAME, as `hf download --repo-type dataset` writes them.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing data set.")] = False,
    debug: Debug = False,
) -> None:
    """Build a data set and save it as DatasetDicts, with a record of its sources in provenance.json."""
    from esplug.data.build import build

    _print_built(build(name, out, source, force))


def _print_built(built: "Built") -> None:
    from rich.table import Column, Table

    from esplug.utils.console import get_console, say

    console = get_console()
    columns = (Column("folder", overflow="fold"), "split", "rows", "sha256")
    saved = Table(*columns, title=f"Built by {built.plugin}", title_justify="left")
    for folder, splits in built.splits.items():
        for split in splits:
            saved.add_row(str(folder), split.name, f"{split.rows:,}", split.sha256[:12])
    console.print(saved)
    if not built.sources:
        say("Made by the package itself; nothing was downloaded.")
        return
    sources = Table(Column("source", overflow="fold"), "split", "revision", "rows", "sha256", "licence")
    for source in built.sources:
        name, digest = f"{source.repo}:{source.config}" if source.config else source.repo, source.sha256[:12]
        sources.add_row(name, source.split, source.revision[:12], f"{source.rows:,}", digest, source.licence)
    console.print(sources)
