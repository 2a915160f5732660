"""Built-in loggers, and the set of loggers that a run writes to."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from esplug.errors import PluginError, UserError
from esplug.loggers.background import GRACE, PATIENCE, BackgroundLogger, warn_failed
from esplug.plugins.registry import load
from esplug.utils.text import cause

if TYPE_CHECKING:
    from esplug.config import RunConfig


class LoggerSet:
    """Several loggers that act as one, and that can neither stop a run once it has started nor delay it.

    Each logger has a thread of its own, except those that declare ``synchronous = True``
    (:class:`esplug.hookspecs.LoggerSpec`).

    Args:
        names: logger names, as given by ``--logging`` split at commas; a name given twice counts once.

    Raises:
        PluginError: a logger cannot be loaded.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._hold({name: load("logger", name) for name in dict.fromkeys(names)})

    @classmethod
    def of(cls, relays: Mapping[str, pluggy.HookRelay]) -> "LoggerSet":
        """Make a set of loggers that are already loaded: name to hooks."""
        loggers = cls(())
        loggers._hold(relays)
        return loggers

    def _hold(self, relays: Mapping[str, pluggy.HookRelay]) -> None:
        self._synchronous = [_SynchronousLogger(name, relay) for name, relay in relays.items() if is_synchronous(relay)]
        self._background = [
            BackgroundLogger(name, relay) for name, relay in relays.items() if not is_synchronous(relay)
        ]
        self._started: list[_SynchronousLogger | BackgroundLogger] = []

    def start(self, config: "RunConfig", run_dir: Path, iteration: int = 0) -> None:
        """Start every logger, at ``iteration``; when one cannot, close those already started.

        Raises:
            UserError: a logger cannot start, and said so within 5 seconds.
        """
        loggers: list[_SynchronousLogger | BackgroundLogger] = [*self._synchronous, *self._background]
        try:
            for logger in loggers:
                logger.start(config=config, run_dir=run_dir, iteration=iteration)
                self._started.append(logger)
            wait([logger.started for logger in self._background], PATIENCE, FIRST_EXCEPTION)
            for logger in self._background:
                if logger.started.done():
                    logger.started.result()
            for logger in self._background:
                if not logger.started.done():
                    logger.proceed()
        except BaseException as error:
            self.finish("failed")
            if isinstance(error, UserError | KeyboardInterrupt):
                raise
            raise PluginError(
                f"logger {logger.name!r} cannot start [{cause(error)}]; mend that or leave it out of --logging "
                "(--debug shows the traceback)"
            ) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics, named like ``train/reward/mean``; the synchronous loggers have them on return."""
        for logger in self._started:
            logger.call("log", step=step, metrics=dict(metrics))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record evaluation samples."""
        for logger in self._started:
            logger.call("samples", step=step, rows=list(rows))

    def finish(self, status: str) -> None:
        """Close every started logger, within 5 seconds; a second call does nothing."""
        started, self._started = self._started, []
        for logger in reversed(started):  # those in the background first, to close while the others do
            logger.close(status)
        background = [logger for logger in started if isinstance(logger, BackgroundLogger)]
        # One that still hangs in its start has had its time.
        wait([logger.finished for logger in background if logger.started.done()], PATIENCE - GRACE)
        hanging = [logger for logger in background if not logger.finished.done()]
        for logger in hanging:
            logger.abandon()
        wait([logger.finished for logger in hanging], GRACE)


class _SynchronousLogger:
    """Calls one logger's hooks where they are asked for."""

    def __init__(self, name: str, relay: pluggy.HookRelay) -> None:
        self.name, self._relay, self._failed = name, relay, False

    def start(self, **arguments: Any) -> None:
        self._relay.start(**arguments)

    def call(self, hook: str, **arguments: Any) -> None:
        try:
            getattr(self._relay, hook)(**arguments)
        except (Exception, SystemExit) as error:
            if not self._failed:
                self._failed = True
                warn_failed(self.name, error)

    def close(self, status: str) -> None:
        self.call("finish", status=status)


def is_synchronous(relay: pluggy.HookRelay) -> bool:
    """Whether the plugin, a module or an object, says that it is synchronous."""
    return bool(getattr(relay.log.get_hookimpls()[0].plugin, "synchronous", False))
