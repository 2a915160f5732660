"""Plugin loading: imports one plugin by name, checks its hooks, and names the plugin in its errors."""

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from importlib.metadata import EntryPoint
from typing import Any, cast

import pluggy

from esplug.errors import PluginError, UserError
from esplug.hookspecs import PROJECT, DatasetSpec, LoggerSpec, ShapingSpec, TaskSpec
from esplug.plugins.discovery import Kind, PluginInfo, find, warn_once
from esplug.utils.text import brief, cause, suggest

_SPECS: Mapping[Kind, type] = {"task": TaskSpec, "dataset": DatasetSpec, "shaping": ShapingSpec, "logger": LoggerSpec}
_REQUIRED: Mapping[Kind, tuple[str, ...]] = {
    "task": ("collate", "template", "reward"),
    "dataset": ("build",),
    "shaping": ("shape",),
    "logger": ("log",),
}
#: Distribution of a plugin that is passed as an object and has no entry point.
UNINSTALLED = "uninstalled"


def load(kind: Kind, name: str) -> pluggy.HookRelay:
    """Import one plugin and return its checked hooks: ``load("task", "math").reward(model_output=...)``.

    Pass every argument of a hook, by name.

    Raises:
        PluginError: the plugin is unknown or ambiguous, fails to import, or does not match the hook specifications.
    """
    plugin = find(kind, name)
    try:
        return relay(_import(plugin), plugin)
    except (KeyboardInterrupt, PluginError):
        raise
    except BaseException as error:  # SystemExit too: a plugin must not end the program
        raise PluginError(f"{plugin} cannot be loaded [{cause(error)}]; {_reinstall(plugin)}") from error


def relay(implementation: object, plugin: PluginInfo, *, marked: bool = True) -> pluggy.HookRelay:
    """Check a module or object against the specifications of its kind, and return its hooks.

    Args:
        implementation: the module or object.
        plugin: what messages say about it.
        marked: whether hooks need ``@hookimpl`` and the required ones must be there. Otherwise the object's methods
            with the names of hooks are its hooks.
    """
    spec = _SPECS[plugin.kind]
    manager = pluggy.PluginManager(PROJECT) if marked else _HooksByName(PROJECT)
    manager.add_hookspecs(spec)
    _check_hooks(implementation, plugin, spec, manager, _REQUIRED[plugin.kind] if marked else ())
    with warnings.catch_warnings():  # pluggy's warnings point at files of esplug; warn_once names the plugin
        warnings.simplefilter("ignore")
        manager.register(implementation, name=plugin.name)
    manager.check_pending()
    for warning in deprecations(manager.hook):
        warn_once(f"{plugin}: {warning}{_or_update(plugin, ';')}")
    return manager.hook


def deprecations(hooks: pluggy.HookRelay) -> list[str]:
    """Return the warnings for the deprecated hooks and arguments that a plugin uses."""
    found: list[Warning | type[Warning]] = []
    for hook in vars(hooks).values():
        for implementation in hook.get_hookimpls():
            arguments = hook.spec.warn_on_impl_args or {}
            found += [hook.spec.warn_on_impl] if hook.spec.warn_on_impl else []
            found += [warning for name, warning in arguments.items() if name in implementation.argnames]
    return [brief(str(warning)) for warning in found]


@contextmanager
def hook_errors(plugin: PluginInfo, hook: str) -> Iterator[None]:
    """Turn a ``ValueError`` of a hook into a :class:`UserError`, and any other error into a :class:`PluginError`."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        kind = "data set" if plugin.kind == "dataset" else plugin.kind
        raise UserError(f"{kind} {plugin.name!r}: {brief(str(error))}") from error
    except (Exception, SystemExit) as error:  # a plugin must not end the program
        raise PluginError(f"{plugin}: {hook} failed [{cause(error)}]; --debug shows the traceback") from error


def _import(plugin: PluginInfo) -> object:
    entry_point = EntryPoint(plugin.name, plugin.entry_point, f"esplug.{plugin.kind}s")
    if not entry_point.pattern.match(entry_point.value):
        raise PluginError(f"{plugin} has the malformed entry point {plugin.entry_point!r}; {_reinstall(plugin)}")
    module = importlib.import_module(entry_point.module)
    try:
        implementation: object = reduce(getattr, filter(None, (entry_point.attr or "").split(".")), module)
    except AttributeError as error:
        fault = f"{entry_point.module} has no {entry_point.attr!r}"
        raise PluginError(
            f"{plugin} has the entry point {plugin.entry_point!r}, but {fault}; {_reinstall(plugin)}"
        ) from error
    return implementation() if inspect.isclass(implementation) else implementation


class _HooksByName(pluggy.PluginManager):
    """Takes methods with the names of hooks as hooks, and looks at nothing else of an object."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> "pluggy.HookimplOpts | None":
        if name not in vars(self.hook) or not inspect.isroutine(inspect.getattr_static(plugin, name)):
            return None
        flags = dict.fromkeys(("wrapper", "hookwrapper", "optionalhook", "tryfirst", "trylast"), False)
        return cast("pluggy.HookimplOpts", {**flags, "specname": None})


def _check_hooks(
    implementation: object, plugin: PluginInfo, spec: type, manager: pluggy.PluginManager, required: Sequence[str]
) -> None:
    known = [name for name in vars(spec) if not name.startswith("_")]
    marked, implemented = set(), set()
    for name in dir(implementation):
        marks = manager.parse_hookimpl_opts(implementation, name)
        if marks is None:
            continue
        hook = marks["specname"] or name
        if hook not in known:
            fault = f"{plugin} implements {hook!r}, which is no hook of a {plugin.kind}; {suggest(hook, known)}"
            raise PluginError(f"{fault.rstrip()} The hooks are {', '.join(known)}")
        _check_arguments(plugin, hook, getattr(implementation, name), getattr(spec, hook))
        marked |= {name, hook}
        if not (marks["wrapper"] or marks["hookwrapper"]):
            implemented.add(hook)

    for hook in known:
        if hook not in marked and _defines(implementation, hook):
            remedy = "put @hookimpl (from esplug import hookimpl) above it"
            raise PluginError(f"{plugin} defines {hook}() without marking it; {remedy}")
    if missing := [hook for hook in required if hook not in implemented]:
        remedy = f"add it with @hookimpl{_or_update(plugin, ',')}"
        raise PluginError(f"{plugin} lacks the required hook {' and '.join(missing)}; {remedy}")


def _check_arguments(
    plugin: PluginInfo, hook: str, implementation: Callable[..., Any], spec: Callable[..., Any]
) -> None:
    """Reject arguments that pluggy would reject with a long message, or would silently never pass."""
    allowed = [name for name in inspect.signature(spec).parameters if name != "self"]
    for name, parameter in inspect.signature(implementation).parameters.items():
        has_default = parameter.default is not parameter.empty
        is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if name not in allowed and not has_default and not is_variadic:
            passes = f"it may take {', '.join(allowed)}" if allowed else "it takes none"
            raise PluginError(f"{plugin}: hook {hook} takes the unknown argument {name!r}; {passes}")
        if name in allowed and (has_default or parameter.kind is parameter.KEYWORD_ONLY):
            fault = f"has {'a default' if has_default else 'a * before it'}, so pluggy would never pass it; remove that"
            raise PluginError(f"{plugin}: argument {name!r} of hook {hook} {fault}")


def _defines(implementation: object, name: str) -> bool:
    """Return whether the plugin's own source defines a function of this name, rather than importing one."""
    home = implementation.__name__ if inspect.ismodule(implementation) else type(implementation).__module__
    function = inspect.getattr_static(implementation, name, None)
    return inspect.isroutine(function) and getattr(function, "__module__", None) == home


def _reinstall(plugin: PluginInfo) -> str:
    return f"reinstall or update it: pip install -U {plugin.distribution} (--debug shows the traceback)"


def _or_update(plugin: PluginInfo, separator: str) -> str:
    """Offer a remedy to users who did not write the plugin."""
    installed = plugin.distribution != UNINSTALLED
    return f"{separator} or update the plugin: pip install -U {plugin.distribution}" if installed else ""
