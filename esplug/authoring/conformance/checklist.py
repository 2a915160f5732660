"""What a plugin must do to be used in a run, checked without a model: :mod:`esplug.testing` is its front."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import pluggy

from esplug.errors import PluginError, UserError
from esplug.plugins import Kind, PluginInfo, find, load
from esplug.plugins.loading import UNINSTALLED, deprecations, relay
from esplug.utils.text import brief, cause, printable

T = TypeVar("T")
_LONGEST_DETAIL = 300


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        ok: whether it is as it must be.
        detail: what was found, in one line.
    """

    name: str
    ok: bool
    detail: str


#: Told of each check twice: its name and ``None`` before it is made, its name and the check afterwards.
Report: TypeAlias = Callable[[str, Check | None], None]


class Fault(Exception):  # noqa: N818 - it never leaves the kit
    """A plugin does not do what it must."""


class Checklist:
    """Makes checks, one after the other.

    Args:
        report: is told of each check, before it is made too; so that what hangs has a name.

    Attributes:
        results: the checks made so far.
    """

    def __init__(self, report: Report | None = None) -> None:
        self.results: list[Check] = []
        self._report = report or (lambda name, made: None)

    def run(self, name: str, probe: Callable[[], tuple[T, str]], *, users: bool = False) -> T | None:
        """Run a probe, which returns a value and a detail; return the value, or ``None`` where it raised.

        Args:
            name: of the check.
            probe: makes it.
            users: whether it reads what the user gave, so that a :class:`UserError` is for the user to mend.

        Raises:
            UserError: the user can mend it.
        """
        self._report(name, None)
        try:
            value, detail = probe()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin must not end the program
            if users and isinstance(error, UserError) and not isinstance(error, PluginError):
                raise
            self._add(name, False, str(error) if isinstance(error, UserError | Fault) else f"raised {cause(error)}")
            logging.getLogger("esplug").debug("%s", name, exc_info=error)
            return None
        self._add(name, True, detail)
        return value

    def _add(self, name: str, ok: bool, detail: str) -> None:
        made = Check(name, ok, printable(brief(detail, _LONGEST_DETAIL)))
        self.results.append(made)
        self._report(name, made)


def resolved(kind: Kind, plugin: object) -> tuple[PluginInfo, Callable[[], pluggy.HookRelay]]:
    """Return what is known of a plugin, and the function that loads it.

    Args:
        kind: what it is.
        plugin: the name of one that is installed; or its module, its class, or an object with its hooks.

    Raises:
        PluginError: no plugin, or more than one, has this name.
    """
    if isinstance(plugin, str):
        return find(kind, plugin), lambda: load(kind, plugin)
    name = getattr(plugin, "__name__", type(plugin).__name__)
    info = PluginInfo(kind, name, UNINSTALLED, "plugin", name)
    return info, lambda: relay(plugin() if inspect.isclass(plugin) else plugin, info)


def loads(load: Callable[[], pluggy.HookRelay]) -> tuple[pluggy.HookRelay, str]:
    """Load a plugin, as a probe."""
    hooks = load()
    found = [name for name, hook in vars(hooks).items() if hook.get_hookimpls()]
    return hooks, "; ".join([f"hooks: {', '.join(found)}", *deprecations(hooks)])
