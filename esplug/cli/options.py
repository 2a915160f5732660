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
_NUMBERS = {int: "INTEGER", float: "FLOAT"}
_REPEATABLE = {"task_options": "KEY=VALUE", "stop": "TEXT", "tags": "NAME"}
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

        def run(**values: Any) -> None:
            flags = {field: values.pop(field) for field in fields}
            given = {field: value for field, value in flags.items() if value not in (None, [])}
            command(flags=given, **values)

        own = [p for p in inspect.signature(command).parameters.values() if p.name != "flags"]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        parameters = [*own, *(_option(field, for_command) for field in fields)]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        vars(run)["__signature__"] = inspect.Signature(parameters)
        return run

    return decorate


def _option(name: str, command: Command) -> inspect.Parameter:
    """Make a typer option from a field."""
    field = RunConfig.model_fields[name]
    flag, metavar = flag_of(name, command), None
    kind: Any = _plain_type(field.annotation)
    if get_origin(kind) is Literal:
        kind, metavar = str, "|".join(get_args(kind))
    elif kind in _NUMBERS:  # RunConfig parses them, for its error messages
        kind, metavar = str, _NUMBERS[kind]
    if kind is bool:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    default = field.default
    if name in _REPEATABLE:
        kind, metavar = list[str], _REPEATABLE[name]
    elif get_origin(kind) is list:
        kind, metavar, default = str, "A,B", ",".join(map(str, default))
    shown = f"  [default: {default}]" if default not in (None, {}, [], "") and kind is not bool else ""
    option = typer.Option(
        flag,
        help=f"{field.description}{shown}".replace("[default", r"\[default"),
        rich_help_panel=panel_of(name),
        metavar=metavar,
        show_default=False,
        autocompletion=completer(name),
    )
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


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
