"""What the shell offers for the values of options: choices, and names of plugins from package metadata alone.

Where nothing is offered, the shell offers files.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias, get_args, get_origin

from esplug.config import RunConfig
from esplug.plugins.registry import Kind, list_plugins

Completer: TypeAlias = Callable[[str], list[str]]
_PLUGINS: dict[str, Kind] = {"task": "task", "reward_shaping": "shaping", "logging": "logger"}


def completer(field: str) -> Completer | None:
    """Return what completes the value of a setting; ``None`` where any text or file may stand."""
    annotation: Any = RunConfig.model_fields[field].annotation
    if get_origin(annotation) is Literal:
        return choices(get_args(annotation))
    if field not in _PLUGINS:
        return None
    return comma_list(_PLUGINS[field]) if field == "logging" else plugin_names(_PLUGINS[field])


def choices(known: Iterable[str]) -> Completer:
    """Return what completes one of some words."""
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]


def plugin_names(kind: Kind) -> Completer:
    """Return what completes the name of an installed plugin."""
    return lambda incomplete: choices(_names(kind))(incomplete)


def comma_list(kind: Kind) -> Completer:
    """Return what completes the last of several plugins' names, and offers each once."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        left = [name for name in _names(kind) if name not in before.split(",")]
        return [f"{before}{comma}{name}" for name in choices(left)(last)]

    return complete


def _names(kind: Kind) -> list[str]:
    return list(dict.fromkeys(plugin.name for plugin in list_plugins() if plugin.kind == kind))
