"""Callbacks: objects with hooks of a logger, which Python users pass to the trainer as they are."""

import inspect
from collections.abc import Sequence

import pluggy

from esplug.errors import PluginError, UserError
from esplug.hookspecs import LoggerSpec
from esplug.plugins import PluginInfo
from esplug.plugins.loading import UNINSTALLED, relay
from esplug.utils.text import suggest

_HOOKS = [name for name in vars(LoggerSpec) if not name.startswith("_")]


def callback_hooks(callbacks: Sequence[object]) -> dict[str, pluggy.HookRelay]:
    """Check the callbacks, and return the hooks of each by the name of its class, numbered if several have it.

    Raises:
        UserError: an object has no hook, an unknown ``on_...`` method, or a hook with an unknown argument.
    """
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        raise UserError(f"callbacks is a {type(callbacks).__name__}; give a list of objects")
    found: dict[str, pluggy.HookRelay] = {}
    for callback in callbacks:
        name = type(callback).__name__
        number = sum(type(other).__name__ == name for other in callbacks[: len(found)]) + 1
        found[name if number == 1 else f"{name} {number}"] = _hooks(callback, name)
    return found


def _hooks(callback: object, name: str) -> pluggy.HookRelay:
    if inspect.isclass(callback):
        raise UserError(f"callbacks has the class {callback.__name__}; give an object: {callback.__name__}()")
    methods = [each for each in dir(callback) if inspect.isroutine(inspect.getattr_static(callback, each, None))]
    for method in methods:
        if method.startswith("on_") and method not in _HOOKS:
            hint = suggest(method, _HOOKS) or f"the hooks are {', '.join(_HOOKS)}"
            raise UserError(f"callback {name!r} defines {method}, which is no hook; {hint}")
    if not set(methods) & set(_HOOKS):
        raise UserError(f"callback {name!r} has no hook; give an object with a method such as on_evaluation_end(event)")
    info = PluginInfo("logger", name, UNINSTALLED, "", "")
    try:
        return relay(callback, info, marked=False)
    except PluginError as error:
        raise UserError(str(error).replace(str(info), f"callback {name!r}")) from error
