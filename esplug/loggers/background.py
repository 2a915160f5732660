"""Background logger: calls a logger in its own thread, so that it can neither delay nor stop a run."""

import ctypes
import logging
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pluggy

from esplug.utils.text import brief, cause, printable

TIMEOUT = 5.0  # seconds for which a run waits for all loggers at its start, and again at its end
GRACE = 0.2  # of these, seconds in which abandoned loggers can end
STOPPING = ("on_iteration_end", "on_evaluation_end")  # hooks that can stop the run
_QUEUE_SIZE = 256  # calls; a logger that hangs must not fill the memory with samples


class BackgroundLogger:
    """Calls one logger's hooks in order, one at a time, in a daemon thread."""

    def __init__(self, name: str, relay: pluggy.HookRelay, kind: str = "logger") -> None:
        self.name, self.relay = name, relay
        self.who = f"{kind} {name!r}"  #: for messages
        self.started: Future[None] = Future()  #: done when ``start`` has returned or raised; holds its exception
        self.finished: Future[None] = Future()  #: done when the logger makes no more calls
        self._queue: SimpleQueue[tuple[str, dict[str, Any], Future[str]]] = SimpleQueue()
        self._current = "start"  # hook
        self._calls, self._completed = 0, 0  # without start and finish
        self._failed = self._full = self._abandoned = False

    def start(self, **arguments: Any) -> None:
        """Start the thread, which calls ``start`` and sets :attr:`started`."""
        self._thread = Thread(target=self._work, args=(arguments,), name=self.who, daemon=True)
        self._thread.start()

    def proceed(self) -> None:
        """Stop waiting for ``start``. If it raises later, warn."""
        warn(self.who, f"is not ready after {TIMEOUT:g} s; the run goes on, and calls wait until the logger is ready")
        self.started.add_done_callback(self._started_late)

    def call(self, hook: str, **arguments: Any) -> None:
        """Queue a call, or drop it if the queue is full."""
        if self._queue.qsize() < _QUEUE_SIZE:
            self.ask(hook, **arguments)
            return
        self._calls += 1
        if not (self._full or self.finished.done()):
            self._full = True
            behind = f"is {_QUEUE_SIZE} calls behind (in {self._current})"
            warn(self.who, f"{behind}; further calls are lost until it catches up")

    def ask(self, hook: str, **arguments: Any) -> "Future[str]":
        """Queue a call, even if the queue is full. Return its answer: why the run should stop, or ``""``."""
        self._calls += 1
        answer: Future[str] = Future()
        self._queue.put((hook, arguments, answer))
        return answer

    def close(self, status: str) -> None:
        """Queue ``finish``, even if the queue is full."""
        self._queue.put(("finish", {"status": status}, Future()))

    def abandon(self, consequence: str = "the run ends without it") -> None:
        """Make no further calls, interrupt the current one if it runs Python code, and warn of lost calls."""
        self._abandoned = True
        # A thread that still runs while the interpreter shuts down can make it abort.
        thread = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit))
        lost = self._calls - self._completed
        warn(self.who, f"hangs in {self._current}; {consequence}, and {lost} of its calls are lost")

    def _work(self, arguments: dict[str, Any]) -> None:
        try:
            self.relay.start(**arguments)
        except BaseException as error:
            self.finished.set_result(None)
            self.started.set_exception(error)
            return
        self.started.set_result(None)
        while self._current != "finish" and not self._abandoned:
            self._current, arguments, answer = self._queue.get()
            reason = ""
            try:
                reason = reason_to_stop(self._current, getattr(self.relay, self._current)(**arguments))
            except BaseException as error:
                if not (self._failed or self._abandoned):
                    self._failed = True
                    warn_failed(self.who, error)
            answer.set_result(reason)
            self._completed += self._current != "finish"
        self.finished.set_result(None)

    def _started_late(self, started: "Future[None]") -> None:
        if (error := started.exception()) and not self._abandoned:
            warn(self.who, f"cannot start [{cause(error)}]; the run goes on without it")


def reason_to_stop(hook: str, answer: object) -> str:
    """Check what a hook returned. Return why the run should stop, in one line, or ``""``.

    Raises:
        TypeError: a hook that can stop the run returned neither ``None`` nor a text.
    """
    if hook not in STOPPING or answer is None:
        return ""
    if not isinstance(answer, str) or not (reason := brief(printable(answer))):
        given = "an empty text" if isinstance(answer, str) else f"{type(answer).__name__}"
        raise TypeError(f"{hook} returned {given}, not None or a text that says why the run should stop")
    return reason


def warn(who: str, what: str) -> None:
    """Log a one-line warning about a logger or a callback."""
    logging.getLogger("esplug").warning("%s %s", who, what)


def warn_failed(who: str, error: BaseException) -> None:
    """Warn that a hook raised. Call this once per logger."""
    warn(who, f"failed [{cause(error)}]; the run goes on without warning of further failures")
