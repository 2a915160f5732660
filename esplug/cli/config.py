"""``esplug config``: the settings of a run with their sources, and the JSON schema of the TOML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from esplug.cli.completion import plugin_names
from esplug.cli.options import ConfigFile, Debug, command_group, with_settings

app = command_group("Show the settings of a run and their sources, or the JSON schema of the TOML file.")


@app.command()
@with_settings("train")
def show(
    flags: Mapping[str, Any],
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Show the settings with which this run, given by its directory, would resume."
        ),
    ] = None,
    config: ConfigFile = None,
    debug: Debug = False,
) -> None:
    """Print the settings that `esplug train` would use with the same flags, as TOML with their sources as comments."""
    from esplug.cli.config_text import annotated_toml
    from esplug.runs.settings import resolve

    typer.echo(annotated_toml(resolve(flags, config, "train", resume)), nl=False)


@app.command()
def schema(
    task: Annotated[
        str | None, typer.Option(help="Describe this task's options too.", autocompletion=plugin_names("task"))
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the JSON schema of the TOML file, for editors."""
    import json

    from esplug.cli.config_text import json_schema
    from esplug.plugins.task import Task

    typer.echo(json.dumps(json_schema(Task.load(task) if task else None), indent=2))
