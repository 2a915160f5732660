"""Checklist: runs checks of a plugin one by one and collects their results."""

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
    """Result of one check."""

    name: str
    ok: bool  #: whether the plugin passes
    detail: str  #: one line about what was found
    skipped: bool = False  #: whether it did not run, for want of what ``detail`` names


#: Called twice for each check: with its name and ``None`` before it runs, and with its name and result afterwards.
Report: TypeAlias = Callable[[str, Check | None], None]


class Fault(Exception):  # noqa: N818 - it never leaves the kit
    """A plugin fails a check."""


class Skipped(Exception):  # noqa: N818 - it never leaves the kit
    """A check cannot run; the message says what to give."""


class Checklist:
    """Runs checks one after the other, and reports each before and after it runs, so that one that hangs is seen."""

    def __init__(self, report: Report | None = None) -> None:
        self.results: list[Check] = []
        self._report = report or (lambda name, made: None)

    def run(self, name: str, probe: Callable[[], tuple[T, str]], *, users: bool = False) -> T | None:
        """Run a check and return its value, or ``None`` if it fails or is skipped.

        Args:
            name: name of the check.
            probe: performs the check: returns a value and a detail, raises :class:`Skipped`, or raises another
                exception to fail.
            users: whether the probe reads the user's own data, so that a :class:`UserError` is raised, not a failure.
        """
        self._report(name, None)
        try:
            value, detail = probe()
        except KeyboardInterrupt:
            raise
        except Skipped as what:
            self._add(name, True, f"skipped: {what}", skipped=True)
            return None
        except BaseException as error:  # a plugin must not end the program
            if users and isinstance(error, UserError) and not isinstance(error, PluginError):
                raise
            self._add(name, False, str(error) if isinstance(error, UserError | Fault) else f"raised {cause(error)}")
            logging.getLogger("esplug").debug("%s", name, exc_info=error)
            return None
        self._add(name, True, detail)
        return value

    def _add(self, name: str, ok: bool, detail: str, *, skipped: bool = False) -> None:
        made = Check(name, ok, printable(brief(detail, _LONGEST_DETAIL)), skipped)
        self.results.append(made)
        self._report(name, made)


def resolved(kind: Kind, plugin: object) -> tuple[PluginInfo, Callable[[], pluggy.HookRelay]]:
    """Return the metadata and the loader of an installed plugin, by name, or of a module, class or object."""
    if isinstance(plugin, str):
        return find(kind, plugin), lambda: load(kind, plugin)
    name = getattr(plugin, "__name__", type(plugin).__name__)
    info = PluginInfo(kind, name, UNINSTALLED, "plugin", name)
    return info, lambda: relay(plugin() if inspect.isclass(plugin) else plugin, info)


def loads(load: Callable[[], pluggy.HookRelay]) -> tuple[pluggy.HookRelay, str]:
    """Load a plugin, as the probe of a check, and list its hooks and deprecation warnings."""
    hooks = load()
    found = [name for name, hook in vars(hooks).items() if hook.get_hookimpls()]
    return hooks, "; ".join([f"hooks: {', '.join(found)}", *deprecations(hooks)])


def all_passed(kind: Kind, plugin: object, checks: list[Check]) -> list[Check]:
    """Return the checks if all of them passed; otherwise raise ``AssertionError``, which lists the failed ones."""
    failed = [f"- {check.name}: {check.detail}" for check in checks if not check.ok]
    if failed:
        raise AssertionError("\n".join([f"{len(failed)} of {len(checks)} checks of {kind} {plugin!r} fail:", *failed]))
    return checks
