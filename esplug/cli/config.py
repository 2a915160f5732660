"""``esplug config``: the settings of a run with their sources, and the JSON schema of the TOML file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esplug.cli.options import ConfigFile, Debug, command_group, plugin_names, with_settings
from esplug.config import RunConfig, complete, default_of

if TYPE_CHECKING:
    from esplug.plugins.task import Task
    from esplug.runs.settings import Resolved

_COMMENT_COLUMN = 44  # unless the value is longer
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
#: Types that a file may use besides the type of the setting.
_OTHER_TYPES: dict[str, list[dict[str, Any]]] = {
    "logging": [{"type": "string"}],
    "eval_splits": [{"type": "string"}],
    "pass_k": [{"type": "integer"}, {"type": "string"}],
    "use_gpus": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}],
}

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
    from esplug.plugins.task import Task

    typer.echo(json.dumps(json_schema(Task.load(task) if task else None), indent=2))


def annotated_toml(resolved: "Resolved") -> str:
    """Write resolved settings as TOML that ``--config`` reads, with the source of each as a comment.

    A source is ``default``, ``task``, ``recipe NAME``, ``run`` (which is resumed), ``file`` or ``flag``. Settings
    without a value are comments.
    """
    merged, values = resolved.merged, resolved.config.model_dump()
    tables = {name: values.pop(name) for name in merged.option_origins}
    # Unless a source sets alpha, it is the recipe's multiple of sigma.
    origins = ({"alpha": f"recipe {resolved.config.recipe}"} if "recipe" in merged.origins else {}) | merged.origins
    lines = []
    for name, value in values.items():
        origin = origins.get(name, "default")
        if value is None:
            shown = default_of(name)
            origin, line = f"not set: {shown}" if shown else "not set", f"# {name} ="
        else:
            line = _one_line(name, value)
        lines.append(f"{line:<{_COMMENT_COLUMN}} # {origin}")
    for table, options in tables.items():
        if options:
            lines += ["", f"[{table}]"]
        for name, value in options.items():
            origin = merged.option_origins[table].get(name, "default")
            lines.append(f"{_one_line(name, value):<{_COMMENT_COLUMN}} # {origin}")
    return "\n".join(lines) + "\n"


def json_schema(task: "Task | None") -> dict[str, Any]:
    """Return the JSON schema of the TOML file, with a task's options or, without a task, with any option."""
    complete()
    schema = RunConfig.model_json_schema()
    properties: dict[str, Any] = schema["properties"]
    for name, info in properties.items():
        for key in ("panel", "details", "flag", "eval_flag"):
            info.pop(key, None)
        # TOML has no null: a setting without a value is left out.
        kinds = [kind for kind in info.pop("anyOf", []) if kind != {"type": "null"}]
        if info.get("default", 0) is None:
            del info["default"]
        if name in _OTHER_TYPES and not kinds:
            kinds = [{key: info.pop(key) for key in ("type", "items") if key in info}]
        kinds += _OTHER_TYPES.get(name, [])
        info |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}
    if task is not None:
        properties["task_options"] |= {
            "additionalProperties": False,
            "properties": {
                name: {"type": _TYPES.get(type(value), "string"), "default": value}
                for name, value in task.options.items()
            },
        }
    properties["$schema"] = {"type": "string", "description": "Location of this schema, for editors."}
    about = {"title": "esplug", "description": "Settings of `esplug train` and `esplug eval`."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | about


def _one_line(name: str, value: Any) -> str:
    """Write one setting in one line. Line breaks are only between items of a list: TOML escapes those in strings."""
    import tomli_w

    text = tomli_w.dumps({name: value}).rstrip("\n")
    return text.replace("[\n    ", "[").replace(",\n    ", ", ").replace(",\n]", "]")
