"""A logger in a thread of its own, which can neither delay a run nor stop it."""

import ctypes
import logging
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pluggy

from esplug.utils.text import cause

PATIENCE = 5.0  # seconds that all loggers together may make a run wait at its start, and again at its end
GRACE = 0.2  # of these, for those that are given up to leave
_LONGEST_QUEUE = 256  # calls; a logger that hangs must not fill the memory with samples


class BackgroundLogger:
    """Calls one logger's hooks in order, one at a time, in a daemon thread.

    Attributes:
        name: the logger's, for messages.
        started: done when ``start`` has returned or, with its exception, raised.
        finished: done when there is nothing to wait for any more.
    """

    def __init__(self, name: str, relay: pluggy.HookRelay) -> None:
        self.name = name
        self.started: Future[None] = Future()
        self.finished: Future[None] = Future()
        self._relay = relay
        self._queue: SimpleQueue[tuple[str, dict[str, Any]]] = SimpleQueue()
        self._now = "start"
        self._given, self._taken = 0, 0  # calls of log and samples
        self._failed = self._full = self._abandoned = False

    def start(self, **arguments: Any) -> None:
        """Begin; :attr:`started` tells the outcome."""
        self._thread = Thread(target=self._work, args=(arguments,), name=f"logger {self.name}", daemon=True)
        self._thread.start()

    def proceed(self) -> None:
        """Go on without waiting for ``start`` any longer; should it raise yet, that is a warning only."""
        warn(self.name, f"is not ready after {PATIENCE:g} s; the run goes on, and what it logs waits for the logger")
        self.started.add_done_callback(self._started_late)

    def call(self, hook: str, **arguments: Any) -> None:
        """Queue a call of ``log`` or ``samples``; a full queue drops it."""
        self._given += 1
        if self._queue.qsize() < _LONGEST_QUEUE:
            self._queue.put((hook, arguments))
        elif not (self._full or self.finished.done()):
            self._full = True
            warn(self.name, f"is {_LONGEST_QUEUE} calls behind (in {self._now}); those that find no room are lost")

    def close(self, status: str) -> None:
        """Queue ``finish``, whether or not there is room."""
        self._queue.put(("finish", {"status": status}))

    def abandon(self) -> None:
        """Make no further call, end the one under way if it runs Python code, and say what is lost."""
        self._abandoned = True
        # A thread that runs on while the interpreter ends can make it abort.
        thread = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit))
        lost = self._given - self._taken
        warn(self.name, f"hangs in {self._now}; the run ends without it, and {lost} of its calls are lost")

    def _work(self, arguments: dict[str, Any]) -> None:
        try:
            self._relay.start(**arguments)
        except BaseException as error:
            self.finished.set_result(None)
            self.started.set_exception(error)
            return
        self.started.set_result(None)
        while self._now != "finish" and not self._abandoned:
            self._now, arguments = self._queue.get()
            try:
                getattr(self._relay, self._now)(**arguments)
            except BaseException as error:
                if not (self._failed or self._abandoned):
                    self._failed = True
                    warn_failed(self.name, error)
            self._taken += self._now != "finish"
        self.finished.set_result(None)

    def _started_late(self, started: "Future[None]") -> None:
        if (error := started.exception()) and not self._abandoned:
            warn(self.name, f"cannot start [{cause(error)}]; the run goes on without it")


def warn(name: str, what: str) -> None:
    """Say in one line what is the matter with a logger."""
    logging.getLogger("esplug").warning("logger %r %s", name, what)


def warn_failed(name: str, error: BaseException) -> None:
    """Say that a call raised; to be said once."""
    warn(name, f"failed [{cause(error)}]; the run goes on, and its next failures stay silent")
