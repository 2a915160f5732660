"""Built-in loggers, and the set of loggers that a run writes to."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from esplug.errors import PluginError, UserError
from esplug.plugins import cause, load

if TYPE_CHECKING:
    from esplug.config import RunConfig


class LoggerSet:
    """Several loggers that act as one, and that cannot stop a run once it has started.

    Args:
        names: logger names, as given by ``--logging`` split at commas; a name given twice counts once.

    Raises:
        PluginError: a logger cannot be loaded.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._loaded = {name: load("logger", name) for name in dict.fromkeys(names)}
        self._started: dict[str, pluggy.HookRelay] = {}
        self._warned: set[str] = set()

    def start(self, config: "RunConfig", run_dir: Path, iteration: int = 0) -> None:
        """Start every logger, at ``iteration``; when one cannot, close those already started.

        Raises:
            UserError: a logger cannot start.
        """
        for name, relay in self._loaded.items():
            try:
                relay.start(config=config, run_dir=run_dir, iteration=iteration)
            except BaseException as error:
                self.finish("failed")
                if isinstance(error, UserError | KeyboardInterrupt):
                    raise
                raise PluginError(
                    f"logger {name!r} cannot start [{cause(error)}]; mend that or leave it out of --logging "
                    "(--debug shows the traceback)"
                ) from error
            self._started[name] = relay

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics, named like ``train/reward/mean``."""
        self._each(lambda relay: relay.log(step=step, metrics=metrics))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record evaluation samples."""
        self._each(lambda relay: relay.samples(step=step, rows=rows))

    def finish(self, status: str) -> None:
        """Close every started logger; a second call does nothing."""
        self._each(lambda relay: relay.finish(status=status))
        self._started.clear()

    def _each(self, call: Callable[[pluggy.HookRelay], object]) -> None:
        for name, relay in self._started.items():
            try:
                call(relay)
            except (Exception, SystemExit) as error:
                if name not in self._warned:
                    self._warned.add(name)
                    logging.getLogger("esplug").warning(
                        "logger %r failed [%s]; the run goes on, and its next failures stay silent",
                        name,
                        cause(error),
                    )
