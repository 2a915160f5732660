"""Queue between a reward pool and its graders: completions go in, and grades or an error come out."""

import itertools
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from esplug.errors import RunError
from esplug.rewards.grades import Graded, PendingRewards
from esplug.rewards.requests import Ungraded
from esplug.utils.text import brief


class GradingQueue:
    """Completions and turns to grade, and the rewards that are pending. Used by the pool and the graders' threads.

    Args:
        name: the reward function, for error messages.

    Attributes:
        loaded: set once a grader has loaded the reward function, or once grading has failed.
        closed: set once no more is graded.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.loaded, self.closed = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._hang_ups: set[Callable[[], None]] = set()
        self._tasks: queue.PriorityQueue[tuple[int, int, Ungraded | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()  # of the tasks, so that those of one kind stay in order
        self._pending: weakref.WeakSet[PendingRewards] = weakref.WeakSet()
        self._error: Exception | None = None

    def wait_until_loaded(self) -> None:
        """Wait until a grader has loaded the reward function. Raises the error if none does."""
        self.loaded.wait()
        if self._error:
            raise self._error

    def submit(self, pending: PendingRewards, tasks: list[Ungraded]) -> None:
        """Queue the tasks of pending rewards. Raises the error if grading has failed, ``RuntimeError`` if closed."""
        with self._lock:
            if self.closed.is_set():
                raise RuntimeError("the reward pool is closed")
            if self._error:
                raise self._error
            self._pending.add(pending)
        for task in tasks:
            self.put(task)

    def put(self, task: Ungraded | None) -> None:
        """Queue a task: turns first, because engines wait for them; ``None``, which ends a thread, last."""
        order = 2 if task is None else 0 if task.is_turn else 1
        self._tasks.put((order, next(self._numbers), task))

    def next(self, *, wait: bool) -> Ungraded | None:
        """Return the next task; ``None`` if there is none now, or if the queue closes."""
        with suppress(queue.Empty):
            task = self._tasks.get(block=wait)[-1]
            return None if self.closed.is_set() else task
        return None

    def settle(self, number: int, *graded: tuple[Ungraded, Graded]) -> None:
        """Hand over the grades of grader ``number``. A reward function that raised ``StopRun`` stops grading."""
        for task, grade in graded:
            if grade.stops:
                self.fail(RunError(f"{self._name} stopped the run: {brief(grade.traceback or '', 500)}"))
            else:
                task.pending.set_grade(task.index, replace(grade, grader=number))

    def fail(self, error: Exception, trace: str = "") -> None:
        """Fail all pending rewards and further submissions; ``trace`` is the traceback in a grader."""
        if trace:
            error.__cause__ = RuntimeError(trace)
        with self._lock:
            self._error = self._error or error
            for pending in self._pending:
                pending.set_exception(self._error)
        self.loaded.set()

    def close(self) -> None:
        """Fail all pending rewards, and hang up on the graders."""
        with self._lock:
            self.closed.set()
            for pending in self._pending:
                pending.set_exception(RunError("the reward pool was closed before it had graded these answers"))
            for hang_up in self._hang_ups:
                hang_up()

    @contextmanager
    def at_close(self, hang_up: Callable[[], None]) -> Iterator[None]:
        """Hang up on a grader if the queue closes while it is in use."""
        with self._lock:
            self._hang_ups.add(hang_up)
            if self.closed.is_set():
                hang_up()
        try:
            yield
        finally:
            with self._lock:
                self._hang_ups.discard(hang_up)

    def grade(self, task: Ungraded, ask: Callable[[bytes, float], Graded], timeout: float, number: int) -> None:
        """Have grader ``number`` grade a task by :meth:`.GraderProcess.ask`, and hand over the grade."""
        began, started = time.time(), time.perf_counter()
        graded = ask(task.request, timeout)
        seconds = time.perf_counter() - started
        self.settle(number, (task, replace(graded, began=began, seconds=seconds)))
