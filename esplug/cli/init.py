"""``esplug init``: write a new plugin package."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from esplug.cli.options import Debug
from esplug.errors import UserError
from esplug.utils.text import brief


class Kind(StrEnum):
    """Kinds of plugins that ``esplug init`` writes and ``esplug check`` checks."""

    task = "task"
    shaping = "shaping"
    logger = "logger"


def init(
    name: Annotated[str, typer.Argument(help="Name of the plugin, which users will type, such as answer-length.")],
    kind: Annotated[Kind, typer.Option(help="Kind of the plugin.")],
    directory: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder to create, or an empty folder.  \\[default: ./ and the package's name]"
        ),
    ] = None,
    turns: Annotated[
        bool, typer.Option("--turns", help="With --kind task: a task of several turns, whose environment replies.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a new plugin package that works as it is: hooks, tests, README, and CI that publishes it."""
    from esplug.authoring.scaffold.new_plugin import NewPlugin

    plugin = NewPlugin.named(kind.value, name, turns=turns)
    try:
        folder = Path(plugin.distribution) if directory is None else directory.expanduser()
    except RuntimeError as error:
        raise UserError(f"--directory {brief(str(directory))}: {error}; name another folder") from error
    plugin.write(folder)
    typer.echo(f"{plugin.distribution}, with the {plugin.kind} {plugin.name!r}, is in {folder}:")
    for path in plugin.files:
        typer.echo(f"  {path}")
    typer.echo("Next:")
    for command in (
        f"cd {shlex.quote(str(folder))}",
        'python -m pip install -e ".[test]"',
        "ruff check . && ruff format .",
        "pytest",
        f"esplug check {plugin.name}",
        plugin.training,
    ):
        typer.echo(f"  {command}")
