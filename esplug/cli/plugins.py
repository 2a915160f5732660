"""What ``esplug plugins`` prints: installed plugins, from metadata alone."""

import json
from dataclasses import asdict

from esplug.hookspecs import API_VERSION
from esplug.plugins import list_plugins

_COLUMNS = ("kind", "name", "distribution", "version", "status")


def render(as_json: bool = False) -> str:
    """Describe the installed plugins, as an aligned table that is never cut, or as JSON."""
    plugins = list_plugins()
    if as_json:
        listing = {"api_version": API_VERSION, "plugins": [asdict(plugin) for plugin in plugins]}
        return json.dumps(listing, indent=2)
    rows = [_COLUMNS, *(tuple(str(getattr(plugin, column)) for column in _COLUMNS) for plugin in plugins)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if not any(plugin.kind == "task" for plugin in plugins):
        lines.append("No task is installed. Try: pip install esplug-tasks-countdown")
    return "\n".join(lines)


def print_plugins(as_json: bool = False) -> None:
    """Print the listing on standard output."""
    print(render(as_json))
