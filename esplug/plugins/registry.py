"""Find plugins by entry point and load one by its name.

Listing reads package metadata and imports nothing; loading imports only the plugin that was named. A slow or
broken plugin therefore costs nothing until someone asks for it, and then fails with its name, its
distribution and a remedy.
"""

import importlib
import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, reduce
from importlib.metadata import Distribution, EntryPoint, distributions
from types import MappingProxyType
from typing import Literal, get_args

import pluggy

from esplug.errors import PluginError, UserError
from esplug.hookspecs import PROJECT, DatasetSpec, LoggerSpec, ShapingSpec, TaskSpec
from esplug.utils.text import brief, cause, suggest

Kind = Literal["task", "dataset", "shaping", "logger"]

_KINDS: tuple[Kind, ...] = get_args(Kind)
_GROUPS: Mapping[str, Kind] = MappingProxyType({f"esplug.{kind}s": kind for kind in _KINDS})
_SPECS: Mapping[Kind, type] = {
    "task": TaskSpec,
    "dataset": DatasetSpec,
    "shaping": ShapingSpec,
    "logger": LoggerSpec,
}
_REQUIRED: Mapping[Kind, tuple[str, ...]] = {
    "task": ("collate", "template", "reward"),
    "dataset": ("build",),
    "shaping": ("shape",),
    "logger": ("log",),
}
_UNKNOWN = "unknown"
UNINSTALLED = "uninstalled"
"""Stands for the distribution of a plugin that no entry point names."""


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """What package metadata says about one plugin.

    Attributes:
        kind: ``task``, ``dataset``, ``shaping`` or ``logger``.
        name: the entry point's name, which users type.
        distribution: what ``pip`` calls the package.
        version: the distribution's version, or ``unknown``.
        entry_point: the entry point's value, ``module`` or ``module:object``.
        status: ``ok``, or ``duplicate: also in <distributions>``.
    """

    kind: Kind
    name: str
    distribution: str
    version: str
    entry_point: str
    status: str = "ok"

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} ({self.distribution} {self.version})"


def list_plugins() -> list[PluginInfo]:
    """List every installed plugin, tasks first, then by name; a name taken twice appears twice."""
    found = list(_installed())
    plugins = []
    for plugin in found:
        same_name = [other for other in found if (other.kind, other.name) == (plugin.kind, plugin.name)]
        rivals = ", ".join(sorted(other.distribution for other in same_name if other is not plugin))
        plugins.append(replace(plugin, status=f"duplicate: also in {rivals}") if rivals else plugin)
    return sorted(plugins, key=lambda plugin: (_KINDS.index(plugin.kind), plugin.name, plugin.distribution))


def find(kind: Kind, name: str) -> PluginInfo:
    """Look a plugin up by name, without importing it.

    Raises:
        PluginError: no distribution, or more than one, provides the name.
    """
    of_kind = [plugin for plugin in list_plugins() if plugin.kind == kind]
    match [plugin for plugin in of_kind if plugin.name == name]:
        case [plugin]:
            return plugin
        case [first, *others]:
            owners = " and ".join(f"{plugin.distribution} {plugin.version}" for plugin in [first, *others])
            goes = next((plugin for plugin in others if first.distribution == "esplug"), first)  # never esplug itself
            raise PluginError(
                f"{kind} {name!r} comes from {owners}; keep one of them: pip uninstall {goes.distribution}"
            )
        case _:
            raise PluginError(_not_installed(kind, name, [plugin.name for plugin in of_kind]))


def load(kind: Kind, name: str) -> pluggy.HookRelay:
    """Import one plugin and return its hooks, checked: ``load("task", "math").reward(model_output=...)``.

    Every argument of a hook must be passed, by name.

    Raises:
        PluginError: the plugin is unknown or ambiguous, fails to import, or does not fit the hooks.
    """
    plugin = find(kind, name)
    try:
        return relay(_import(plugin), plugin)
    except (KeyboardInterrupt, PluginError):
        raise
    except BaseException as error:  # SystemExit too: a plugin must not end the program
        raise PluginError(f"{plugin} cannot be loaded [{cause(error)}]; {_reinstall(plugin)}") from error


def relay(implementation: object, plugin: PluginInfo) -> pluggy.HookRelay:
    """Check a module or object against the hooks of the plugin's kind, and return its hooks.

    Raises:
        PluginError: a hook is unknown, missing, unmarked, or takes an argument that esplug does not pass.
    """
    spec = _SPECS[plugin.kind]
    known = [name for name in vars(spec) if not name.startswith("_")]
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(spec)

    marked, implemented = set(), set()
    for name in dir(implementation):
        marks = manager.parse_hookimpl_opts(implementation, name)
        if marks is None:
            continue
        hook = marks["specname"] or name
        if hook not in known:
            raise PluginError(
                f"{plugin} implements {hook!r}, which is no hook of a {plugin.kind}; "
                f"{suggest(hook, known)} The hooks are {', '.join(known)}".replace("  ", " ")
            )
        _check_arguments(plugin, hook, getattr(implementation, name), getattr(spec, hook))
        marked |= {name, hook}
        if not (marks["wrapper"] or marks["hookwrapper"]):
            implemented.add(hook)

    for hook in known:
        if hook not in marked and _defines(implementation, hook):
            raise PluginError(
                f"{plugin} defines {hook}() without marking it; put @hookimpl (from esplug import hookimpl) above it"
            )
    missing = [hook for hook in _REQUIRED[plugin.kind] if hook not in implemented]
    if missing:
        raise PluginError(
            f"{plugin} lacks the required hook {' and '.join(missing)}; add it with @hookimpl{_or_update(plugin, ',')}"
        )
    with warnings.catch_warnings():  # pluggy's, which name files of esplug's
        warnings.simplefilter("ignore")
        manager.register(implementation, name=plugin.name)
    manager.check_pending()
    for warning in retiring(manager.hook):
        _warn_once(f"{plugin}: {warning}{_or_update(plugin, ';')}")
    return manager.hook


def retiring(hooks: pluggy.HookRelay) -> list[str]:
    """Return what is to be said of retiring hooks and arguments that a plugin uses."""
    found: list[Warning | type[Warning]] = []
    for hook in vars(hooks).values():
        for implementation in hook.get_hookimpls():
            arguments = hook.spec.warn_on_impl_args or {}
            found += [hook.spec.warn_on_impl] if hook.spec.warn_on_impl else []
            found += [warning for name, warning in arguments.items() if name in implementation.argnames]
    return [brief(str(warning)) for warning in found]


@contextmanager
def blame(plugin: PluginInfo, hook: str) -> Iterator[None]:
    """Name the plugin in whatever its hook raises. A ``ValueError`` is the plugin's word to the user.

    Raises:
        UserError: the hook raised one, or a ``ValueError``.
        PluginError: it raised anything else.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        kind = "data set" if plugin.kind == "dataset" else plugin.kind
        raise UserError(f"{kind} {plugin.name!r}: {brief(str(error))}") from error
    except (Exception, SystemExit) as error:  # a plugin must not end the program
        raise PluginError(f"{plugin}: {hook} failed [{cause(error)}]; --debug shows the traceback") from error


def _installed() -> Iterator[PluginInfo]:
    seen = set()
    for distribution in distributions():
        try:
            if "esplug." not in (distribution.read_text("entry_points.txt") or ""):
                continue
            entry_points = list(distribution.entry_points)
        except Exception as error:
            _warn_once(f"entry points of {_name(distribution)} cannot be read [{cause(error)}]")
            continue
        name = _name(distribution)
        # The first one on sys.path is the one that Python imports: an editable install may be there twice.
        normalized = re.sub(r"[-_.]+", "-", name).lower()
        if normalized in seen and name != _UNKNOWN:
            continue
        seen.add(normalized)
        version = _metadata(distribution, "Version")
        for entry_point in entry_points:
            if kind := _GROUPS.get(entry_point.group):
                yield PluginInfo(kind, entry_point.name, name, version, entry_point.value)


def _name(distribution: Distribution) -> str:
    """Return what ``pip`` calls the package; where its metadata is damaged, as its folder is called."""
    folder = getattr(distribution, "_path", None)
    from_folder = folder.name.partition("-")[0] if folder else _UNKNOWN
    return from_folder if (name := _metadata(distribution, "Name")) == _UNKNOWN else name


def _metadata(distribution: Distribution, field: str) -> str:
    try:
        headers = distribution.metadata
        return brief(headers[field]) or _UNKNOWN if field in headers else _UNKNOWN
    except Exception:  # a missing or damaged METADATA file raises whatever the parser meets first
        return _UNKNOWN


@cache
def _warn_once(message: str) -> None:
    logging.getLogger("esplug").warning(message)


def _not_installed(kind: Kind, name: str, installed: list[str]) -> str:
    fault = f"no {kind} {brief(repr(name))} is installed (installed: {', '.join(installed) or 'none'})"
    may_exist = kind == "task" and re.fullmatch(r"[A-Za-z0-9][\w.-]{,99}", name, re.ASCII)
    install = f"to install it: pip install esplug-tasks-{name}" if may_exist else ""
    return "; ".join(filter(None, [fault, suggest(name, installed), install]))


def _import(plugin: PluginInfo) -> object:
    entry_point = EntryPoint(plugin.name, plugin.entry_point, f"esplug.{plugin.kind}s")
    if not entry_point.pattern.match(entry_point.value):
        raise PluginError(f"{plugin} has the malformed entry point {plugin.entry_point!r}; {_reinstall(plugin)}")
    module = importlib.import_module(entry_point.module)
    try:
        implementation: object = reduce(getattr, filter(None, (entry_point.attr or "").split(".")), module)
    except AttributeError as error:
        raise PluginError(
            f"{plugin} has the entry point {plugin.entry_point!r}, but {entry_point.module} "
            f"has no {entry_point.attr!r}; {_reinstall(plugin)}"
        ) from error
    return implementation() if inspect.isclass(implementation) else implementation


def _reinstall(plugin: PluginInfo) -> str:
    return f"reinstall or update it: pip install -U {plugin.distribution} (--debug shows the traceback)"


def _or_update(plugin: PluginInfo, mark: str) -> str:
    """Offer the remedy of those who did not write the plugin."""
    installed = plugin.distribution != UNINSTALLED
    return f"{mark} or update the plugin: pip install -U {plugin.distribution}" if installed else ""


def _check_arguments(plugin: PluginInfo, hook: str, implementation: object, spec: object) -> None:
    """Refuse what pluggy would reject with a page of text, or would silently never pass."""
    allowed = [name for name in _parameters(spec) if name != "self"]
    for name, parameter in _parameters(implementation).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        has_default = parameter.default is not parameter.empty
        if name not in allowed and not has_default:
            passes = f"it may take {', '.join(allowed)}" if allowed else "it takes none"
            raise PluginError(f"{plugin}: hook {hook} takes the unknown argument {name!r}; {passes}")
        if name in allowed and (has_default or parameter.kind is parameter.KEYWORD_ONLY):
            fault = "a default" if has_default else "a * before it"
            raise PluginError(
                f"{plugin}: argument {name!r} of hook {hook} has {fault}, which keeps it from being passed; remove that"
            )


def _parameters(function: object) -> Mapping[str, inspect.Parameter]:
    assert callable(function)
    return inspect.signature(function).parameters


def _defines(implementation: object, name: str) -> bool:
    """Whether the plugin's own source defines a function of this name, as opposed to importing one."""
    home = implementation.__name__ if inspect.ismodule(implementation) else type(implementation).__module__
    function = inspect.getattr_static(implementation, name, None)
    return inspect.isroutine(function) and getattr(function, "__module__", None) == home
