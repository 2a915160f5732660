"""Plugin discovery: lists installed plugins from package metadata, without importing any of them."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import Distribution, distributions
from typing import Literal, get_args

from esplug.errors import PluginError
from esplug.utils.text import brief, cause, suggest

Kind = Literal["task", "dataset", "shaping", "logger"]

_KINDS: tuple[Kind, ...] = get_args(Kind)
_KIND_OF_GROUP: dict[str, Kind] = {f"esplug.{kind}s": kind for kind in _KINDS}
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """Package metadata of one plugin."""

    kind: Kind
    name: str  #: the entry point's name, which users type
    distribution: str  #: the package's name for ``pip``
    version: str  #: of the distribution, or ``unknown``
    entry_point: str  #: ``module`` or ``module:object``
    status: str = "ok"  #: or ``duplicate: also in <distributions>``

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} ({self.distribution} {self.version})"


def list_plugins() -> list[PluginInfo]:
    """List every installed plugin by kind, tasks first, then by name. A duplicate name is listed once per package."""
    found = list(_installed())
    plugins = []
    for plugin in found:
        same_name = [other for other in found if (other.kind, other.name) == (plugin.kind, plugin.name)]
        rivals = ", ".join(sorted(other.distribution for other in same_name if other is not plugin))
        plugins.append(replace(plugin, status=f"duplicate: also in {rivals}") if rivals else plugin)
    return sorted(plugins, key=lambda plugin: (_KINDS.index(plugin.kind), plugin.name, plugin.distribution))


def find(kind: Kind, name: str) -> PluginInfo:
    """Look up a plugin, which only one distribution may provide, without importing it."""
    of_kind = [plugin for plugin in list_plugins() if plugin.kind == kind]
    match [plugin for plugin in of_kind if plugin.name == name]:
        case [plugin]:
            return plugin
        case [first, *others]:
            owners = " and ".join(f"{plugin.distribution} {plugin.version}" for plugin in [first, *others])
            extra = others[0].distribution if first.distribution == "esplug" else first.distribution  # never esplug
            raise PluginError(f"{kind} {name!r} comes from {owners}; keep one of them: pip uninstall {extra}")
        case _:
            installed = [plugin.name for plugin in of_kind]
            fault = f"no {kind} {brief(repr(name))} is installed (installed: {', '.join(installed) or 'none'})"
            may_exist = kind == "task" and re.fullmatch(r"[A-Za-z0-9][\w.-]{,99}", name, re.ASCII)
            install = f"to install it: pip install esplug-tasks-{name}" if may_exist else ""
            raise PluginError("; ".join(filter(None, [fault, suggest(name, installed), install])))


@cache
def warn_once(message: str) -> None:
    """Log a warning, unless this process has logged it before."""
    logging.getLogger("esplug").warning(message)


def _installed() -> Iterator[PluginInfo]:
    seen = set()
    for distribution in distributions():
        try:
            if "esplug." not in (distribution.read_text("entry_points.txt") or ""):
                continue
            entry_points = list(distribution.entry_points)
        except Exception as error:
            warn_once(f"entry points of {_name(distribution)} cannot be read [{cause(error)}]")
            continue
        name = _name(distribution)
        # An editable install may be listed twice. Python imports the first one on sys.path.
        normalized = re.sub(r"[-_.]+", "-", name).lower()
        if normalized in seen and name != _UNKNOWN:
            continue
        seen.add(normalized)
        version = _metadata(distribution, "Version")
        for entry_point in entry_points:
            if kind := _KIND_OF_GROUP.get(entry_point.group):
                yield PluginInfo(kind, entry_point.name, name, version, entry_point.value)


def _name(distribution: Distribution) -> str:
    """Return the package's name; if its metadata is damaged, the name in that of its metadata folder."""
    if (name := _metadata(distribution, "Name")) != _UNKNOWN:
        return name
    folder = getattr(distribution, "_path", None)
    return folder.name.partition("-")[0] if folder else _UNKNOWN


def _metadata(distribution: Distribution, field: str) -> str:
    try:
        headers = distribution.metadata
        return brief(headers[field]) or _UNKNOWN if field in headers else _UNKNOWN
    except Exception:  # the parser raises errors of many types on a missing or damaged METADATA file
        return _UNKNOWN
