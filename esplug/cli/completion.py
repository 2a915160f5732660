"""Shell completion of option values: choices, and names of plugins from package metadata alone.

Without a completer, the shell completes file names.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin

from esplug.config import RunConfig

if TYPE_CHECKING:
    from esplug.plugins import Kind

Completer: TypeAlias = Callable[[str], list[str]]
_PLUGINS: "dict[str, Kind]" = {"task": "task", "reward_shaping": "shaping", "logging": "logger"}


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
