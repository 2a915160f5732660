"""``esplug plugins``: the installed plugins, from package metadata alone."""

import json
from dataclasses import asdict

from esplug.cli.options import AsJson

_COLUMNS = ("kind", "name", "distribution", "version", "status")


def plugins(as_json: AsJson = False) -> None:
    """List installed tasks, data sets, reward shapings and loggers, without importing them."""
    print(render(as_json))


def render(as_json: bool = False) -> str:
    """Format the installed plugins as an aligned table or as JSON."""
    from esplug.hookspecs import API_VERSION
    from esplug.plugins import PUBLISHED, list_plugins
    from esplug.utils.text import aligned

    found = list_plugins()
    if as_json:
        listing = {"api_version": API_VERSION, "plugins": [asdict(plugin) for plugin in found]}
        return json.dumps(listing, indent=2)
    table = aligned([_COLUMNS, *(tuple(str(getattr(plugin, column)) for column in _COLUMNS) for plugin in found)])
    if any(plugin.kind == "task" for plugin in found):
        return table
    return f"{table}\nNo task is installed. Try: pip install {PUBLISHED['task']['countdown']}"
