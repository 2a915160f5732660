"""Plugin discovery: lists installed plugins from package metadata, without importing any of them."""

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import Distribution, distributions
from typing import Literal, get_args

from esplug.errors import PluginError
from esplug.utils.text import brief, cause

Kind = Literal["task", "dataset", "shaping", "logger"]

_KINDS: tuple[Kind, ...] = get_args(Kind)
_KIND_OF_GROUP: dict[str, Kind] = {f"esplug.{kind}s": kind for kind in _KINDS}
_UNKNOWN = "unknown"

#: Names of published plugins that are not part of esplug, and their packages.
PUBLISHED: Mapping[Kind, Mapping[str, str]] = {
    "task": {
        "calculator": "esplug-tasks-games",
        "code": "esplug-tasks-code",
        "countdown": "esplug-tasks-countdown",
        "judge": "esplug-tasks-judge",
        "math": "esplug-tasks-math",
        "number-guessing": "esplug-tasks-games",
        "reasoning-gym": "esplug-tasks-reasoning-gym",
        "verifiers": "esplug-tasks-verifiers",
    },
    "dataset": {
        "code_small": "esplug-tasks-code",
        "countdown": "esplug-tasks-countdown",
        "math": "esplug-tasks-math",
        "math_small": "esplug-tasks-math",
    },
}


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
            names = [plugin.name for plugin in of_kind]
            raise not_installed("data set" if kind == "dataset" else kind, name, names, PUBLISHED.get(kind, {}))


def not_installed(what: str, name: str, installed: Collection[str], published: Mapping[str, str]) -> PluginError:
    """Return the error for an unknown plugin, which names those that are known, and the nearest of them.

    Args:
        what: the kind in words, such as ``data set``.
        name: the name that was given.
        installed: names of the installed plugins.
        published: packages of published plugins by name. No other package is proposed to pip, as it might be anybody's.
    """
    elsewhere = {each: package for each, package in published.items() if each not in installed}
    known = "".join(f"; published: {each} in {package}" for each, package in elsewhere.items())
    fault = f"no {what} {brief(repr(name))} is installed (installed: {', '.join(installed) or 'none'}{known})"
    short = re.sub("^esplug[-_][a-z]+[-_]", "", name.lower())
    nearest = next(iter(get_close_matches(short, [*installed, *elsewhere], n=1)), "")
    hints = [f"did you mean {nearest!r}?"] if nearest not in ("", name) else []
    hints += [f"to install it: pip install {elsewhere[nearest]}"] if nearest in elsewhere else []
    return PluginError("; ".join([fault, *(hints or ["choose one of them, or install the package that has it"])]))


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
