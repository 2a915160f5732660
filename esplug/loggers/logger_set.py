"""Logger set: calls all loggers of a run as one."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from pathlib import Path
from typing import Any

import pluggy

from esplug.config import RunConfig
from esplug.errors import PluginError, UserError
from esplug.events import EvaluationEnd, IterationEnd, RunEnd
from esplug.loggers.background import GRACE, TIMEOUT, BackgroundLogger, reason_to_stop, warn_failed
from esplug.plugins import load
from esplug.utils.text import cause

ANSWER = 60.0  # seconds for which a run waits for all answers to one event


class LoggerSet:
    """The loggers of a run, by name or already loaded, and its callbacks. No failure of theirs can stop the run.

    Each has its own thread, except those that declare ``synchronous = True`` (:class:`esplug.hookspecs.LoggerSpec`).
    """

    def __init__(
        self,
        names: Iterable[str],
        loaded: Mapping[str, pluggy.HookRelay] | None = None,
        callbacks: Mapping[str, pluggy.HookRelay] | None = None,
    ) -> None:
        loggers = {name: load("logger", name) for name in dict.fromkeys(names)} | dict(loaded or {})
        self._synchronous: list[_SynchronousLogger] = []
        self._background: list[BackgroundLogger] = []
        self._started: list[_SynchronousLogger | BackgroundLogger] = []
        for kind, relays in (("logger", loggers), ("callback", callbacks or {})):
            for name, relay in relays.items():
                if is_synchronous(relay):
                    self._synchronous.append(_SynchronousLogger(name, relay, kind))
                else:
                    self._background.append(BackgroundLogger(name, relay, kind))

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
            fault = f"{logger.who} cannot start [{cause(error)}]"
            source = "callbacks" if logger.who.startswith("callback") else "--logging"
            remedy = f"fix that or leave it out of {source} (--debug shows the traceback)"
            raise PluginError(f"{fault}; {remedy}") from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics. Synchronous loggers have recorded them on return."""
        for logger in self._started:
            logger.call("log", step=step, metrics=dict(metrics))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record evaluation samples."""
        for logger in self._started:
            logger.call("samples", step=step, rows=list(rows))

    def iteration_end(self, make: Callable[[], IterationEnd]) -> str:
        """Call ``on_iteration_end``, and wait for the answers. Returns why the run should stop, or ``""``."""
        return self._ask("on_iteration_end", make)

    def evaluation_end(self, make: Callable[[], EvaluationEnd]) -> str:
        """Call ``on_evaluation_end``, and wait for the answers. Returns why the run should stop, or ``""``."""
        return self._ask("on_evaluation_end", make)

    def run_end(self, event: RunEnd) -> None:
        """Call ``on_run_end``. Background loggers have until the end of :meth:`finish` for it."""
        for logger in self._listening("on_run_end"):
            logger.ask("on_run_end", event=event)

    def _ask(self, hook: str, make: Callable[[], IterationEnd | EvaluationEnd]) -> str:
        """Call a hook of all loggers that have it. The first answer counts, in the order of the loggers.

        A logger that has not answered after ``ANSWER`` seconds is switched off with a warning.
        """
        if not (listening := self._listening(hook)):
            return ""
        event, deadline = make(), time.monotonic() + ANSWER
        reasons = []
        for logger, answer in [(logger, logger.ask(hook, event=event)) for logger in listening]:
            # A logger that fails late in start answers nothing.
            either: list[Future[Any]] = [answer, logger.finished]
            wait(either, max(0.0, deadline - time.monotonic()), FIRST_COMPLETED)
            if answer.done():
                reasons.append(answer.result())
            elif not logger.finished.done():
                logger.abandon("it is switched off")
                self._started.remove(logger)
        return next(filter(None, reasons), "")

    def _listening(self, hook: str) -> "list[_SynchronousLogger | BackgroundLogger]":
        """Return the loggers that have an optional hook."""
        return [logger for logger in self._started if getattr(logger.relay, hook).get_hookimpls()]

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

    def __init__(self, name: str, relay: pluggy.HookRelay, kind: str) -> None:
        self.name, self.relay, self.who, self._failed = name, relay, f"{kind} {name!r}", False
        self.finished: Future[None] = Future()

    def start(self, **arguments: Any) -> None:
        self.relay.start(**arguments)

    def call(self, hook: str, **arguments: Any) -> None:
        self.ask(hook, **arguments)

    def ask(self, hook: str, **arguments: Any) -> "Future[str]":
        answer: Future[str] = Future()
        reason = ""
        try:
            reason = reason_to_stop(hook, getattr(self.relay, hook)(**arguments))
        except (Exception, SystemExit) as error:
            if not self._failed:
                self._failed = True
                warn_failed(self.who, error)
        answer.set_result(reason)
        return answer

    def close(self, status: str) -> None:
        self.call("finish", status=status)

    def abandon(self, consequence: str) -> None:
        """Do nothing: every call has returned."""


def is_synchronous(relay: pluggy.HookRelay) -> bool:
    """Return whether the plugin, a module or an object, declares itself synchronous."""
    plugins = (each.plugin for hook in vars(relay).values() for each in hook.get_hookimpls())
    return any(getattr(plugin, "synchronous", False) is True for plugin in plugins)
