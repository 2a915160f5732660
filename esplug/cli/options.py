"""Options: those that commands share, one for every field of ``RunConfig``, and shell completion of their values."""

import inspect
from collections.abc import Callable, Iterable
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import typer

from esplug.config import Command, RunConfig, flag_of, panel_of

if TYPE_CHECKING:
    from esplug.plugins import Kind

Function: TypeAlias = Callable[..., None]
Completer: TypeAlias = Callable[[str], list[str]]
ConfigFile = Annotated[str | None, typer.Option("--config", help="TOML file of settings; flags override it.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", bool: ""}
_REPEATABLE = {"stop": "TEXT", "tags": "NAME"}  # besides tables, which are KEY=VALUE
_LONGEST_METAVAR = 13  # a longer one would leave too little of a narrow terminal to the help beside it
_PLUGINS: "dict[str, Kind]" = {"task": "task", "reward_shaping": "shaping", "logging": "logger"}


def command_group(about: str) -> typer.Typer:
    """Make a group of commands. Without a command, it prints its help and exits with status 2."""
    group = typer.Typer(help=about)

    @group.callback(invoke_without_command=True)
    def no_command(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())
            raise typer.Exit(2)

    return group


def with_settings(for_command: Command, leave_out: frozenset[str] = frozenset()) -> Callable[[Function], Function]:
    """Decorate a command so that it has an option for every field of :class:`RunConfig`.

    The command receives the options that the user typed, and no defaults, as ``flags``.
    """

    def decorate(command: Function) -> Function:
        fields = [field for field in RunConfig.model_fields if field not in leave_out]
        switches = [field for field in fields if RunConfig.model_fields[field].annotation is bool]

        def run(**values: Any) -> None:
            flags = {field: values.pop(field) for field in fields}
            flags |= {field: False for field in switches if values.pop(f"no_{field}")}
            given = {field: value for field, value in flags.items() if value not in (None, [])}
            command(flags=given, **values)

        own = [p for p in inspect.signature(command).parameters.values() if p.name != "flags"]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        parameters = [*own, *(_option(field, for_command) for field in fields), *map(_opposite, switches)]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        vars(run)["__signature__"] = inspect.Signature(parameters)
        return run

    return decorate


def _option(name: str, command: Command) -> inspect.Parameter:
    """Make a typer option from a field."""
    field = RunConfig.model_fields[name]
    kind: Any = _plain_type(field.annotation)
    default, metavar = field.default, None
    if get_origin(kind) is Literal:
        words = "|".join(get_args(kind))
        kind, metavar = str, words if len(words) <= _LONGEST_METAVAR else "WORD"
    elif name in _REPEATABLE or get_origin(kind) is dict:
        kind, metavar = list[str], _REPEATABLE.get(name, "KEY=VALUE")
    elif get_origin(kind) is list:
        kind, metavar, default = str, "A,B", ",".join(map(str, default))
    else:  # RunConfig parses numbers, for its error messages
        kind, metavar = bool if kind is bool else str, _METAVARS.get(kind)
    shown = f"  [default: {default}]" if default not in (None, {}, [], "") and kind is not bool else ""
    option = typer.Option(
        flag_of(name, command),
        help=f"{field.description}{shown}".replace("[", r"\["),
        rich_help_panel=panel_of(name),
        metavar=metavar,
        show_default=False,
        autocompletion=completer(name),
    )
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _opposite(name: str) -> inspect.Parameter:
    """Make the option that turns a switch off, which overrides a file. The help does not list it."""
    option = typer.Option(f"--no-{flag_of(name).removeprefix('--')}", hidden=True)
    annotation = Annotated[bool, option]
    return inspect.Parameter(f"no_{name}", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)


def _plain_type(annotation: Any) -> Any:
    """Return ``X`` for ``X | None``."""
    if get_origin(annotation) in (Union, UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def completer(field: str) -> Completer | None:
    """Return the completer of a setting's value; ``None`` if it may be any text or file."""
    annotation: Any = RunConfig.model_fields[field].annotation
    if get_origin(annotation) is Literal:
        return choices(get_args(annotation))
    if field not in _PLUGINS:
        return None
    return comma_list(_PLUGINS[field]) if field == "logging" else plugin_names(_PLUGINS[field])


def choices(known: Iterable[str]) -> Completer:
    """Return a completer for one of several words."""
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]


def plugin_names(kind: "Kind") -> Completer:
    """Return a completer for the name of an installed plugin."""
    return lambda incomplete: choices(_names(kind))(incomplete)


def comma_list(kind: "Kind") -> Completer:
    """Return a completer for the last name in a comma-separated list, which offers no name twice."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        left = [name for name in _names(kind) if name not in before.split(",")]
        return [f"{before}{comma}{name}" for name in choices(left)(last)]

    return complete


def _names(kind: "Kind") -> list[str]:
    from esplug.plugins import list_plugins

    return list(dict.fromkeys(plugin.name for plugin in list_plugins() if plugin.kind == kind))
