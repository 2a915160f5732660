"""Logger set: calls all loggers of a run as one."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from pathlib import Path
from typing import Any

import pluggy

from esplug.config import RunConfig
from esplug.errors import PluginError, UserError
from esplug.loggers.background import GRACE, TIMEOUT, BackgroundLogger, warn_failed
from esplug.plugins import load
from esplug.utils.text import cause


class LoggerSet:
    """The loggers of a run, by name or already loaded. They can neither stop nor delay a run that has started.

    Each has its own thread, except those that declare ``synchronous = True`` (:class:`esplug.hookspecs.LoggerSpec`).
    """

    def __init__(self, names: Iterable[str], loaded: Mapping[str, pluggy.HookRelay] | None = None) -> None:
        relays = {name: load("logger", name) for name in dict.fromkeys(names)} | dict(loaded or {})
        self._synchronous: list[_SynchronousLogger] = []
        self._background: list[BackgroundLogger] = []
        self._started: list[_SynchronousLogger | BackgroundLogger] = []
        for name, relay in relays.items():
            if is_synchronous(relay):
                self._synchronous.append(_SynchronousLogger(name, relay))
            else:
                self._background.append(BackgroundLogger(name, relay))

    def start(self, config: RunConfig, run_dir: Path, iteration: int = 0) -> None:
        """Start every logger at ``iteration``. If one fails within 5 seconds, close the others and raise its error."""
        loggers: list[_SynchronousLogger | BackgroundLogger] = [*self._synchronous, *self._background]
        try:
            for logger in loggers:
                logger.start(config=config, run_dir=run_dir, iteration=iteration)
                self._started.append(logger)
            wait([logger.started for logger in self._background], TIMEOUT, FIRST_EXCEPTION)
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
            fault = f"logger {logger.name!r} cannot start [{cause(error)}]"
            remedy = "fix that or leave it out of --logging (--debug shows the traceback)"
            raise PluginError(f"{fault}; {remedy}") from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics. Synchronous loggers have recorded them on return."""
        for logger in self._started:
            logger.call("log", step=step, metrics=dict(metrics))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record evaluation samples."""
        for logger in self._started:
            logger.call("samples", step=step, rows=list(rows))

    def finish(self, status: str) -> None:
        """Close every started logger within 5 seconds. A second call does nothing."""
        started, self._started = self._started, []
        for logger in reversed(started):  # background loggers first: they close while the others do
            logger.close(status)
        background = [logger for logger in started if isinstance(logger, BackgroundLogger)]
        # Do not wait for a logger that still hangs in start: it has had its time.
        wait([logger.finished for logger in background if logger.started.done()], TIMEOUT - GRACE)
        hanging = [logger for logger in background if not logger.finished.done()]
        for logger in hanging:
            logger.abandon()
        wait([logger.finished for logger in hanging], GRACE)


class _SynchronousLogger:
    """Calls one logger's hooks in the calling thread."""

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
    """Return whether the plugin, a module or an object, declares itself synchronous."""
    return bool(getattr(relay.log.get_hookimpls()[0].plugin, "synchronous", False))
