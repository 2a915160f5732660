"""Grades of completions, and the grades that are still pending."""

import threading
from dataclasses import dataclass, field

from esplug.hookspecs import Message, Reward


@dataclass(frozen=True, slots=True)
class Graded:
    """The outcome of grading one completion.

    Attributes:
        reward: the reward function's result. If grading failed, its value is 0.0 and its label is ``timeout``,
            ``error:<Type>`` for an exception (including ``SystemExit``), ``error:TypeError`` for a result that is not
            a reward, ``error:NonFinite`` for an infinite or undefined one, ``error:MemoryError`` for exceeding the
            memory limit, or ``error:ProcessDied`` for a crash (which may follow a failed allocation in C).
        failed: whether grading failed.
        traceback: details of the failure; long ones are cut in the middle.
        stops: whether the reward function raised :class:`esplug.hookspecs.StopRun`, with the message in ``traceback``.
        reply: of the environment, if this was a turn rather than a completion; ``None`` ends the conversation.
        grader: number of the grader; ``None`` if no grader was involved.
        began: when the request was sent, in Unix seconds.
        seconds: how long grading took.
    """

    reward: Reward
    failed: bool = False
    traceback: str | None = None
    stops: bool = False
    reply: list[Message] | None = None
    grader: int | None = field(default=None, compare=False)
    began: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)

    @classmethod
    def failure(cls, label: str, detail: str) -> "Graded":
        """Return the grade of a completion that could not be graded."""
        return cls(Reward(0.0, label), True, detail)


class PendingRewards:
    """The rewards of one :meth:`.RewardPool.submit`, like a future. The pool sets grades or an exception."""

    def __init__(self, count: int) -> None:
        self._graded: list[Graded | None] = [None] * count
        self._missing = count
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._finished = threading.Event()
        if not count:
            self._finished.set()

    @classmethod
    def failed(cls, count: int, label: str, why: str) -> "PendingRewards":
        """Return the rewards of completions that failed before grading."""
        pending = cls(count)
        for index in range(count):
            pending.set_grade(index, Graded.failure(label, why))
        return pending

    def done(self) -> bool:
        """Whether :meth:`result` would return or raise at once."""
        return self._finished.is_set()

    def result(self) -> list[Graded]:
        """Wait for the rewards, in the order of the completions.

        Raises:
            RunError: the pool was closed or failed before all completions were graded.
        """
        self._finished.wait()
        if self._error:
            raise self._error
        return [graded for graded in self._graded if graded]

    def set_grade(self, index: int, graded: Graded) -> None:
        """Set one completion's grade."""
        with self._lock:
            self._graded[index] = graded
            self._missing -= 1
            if not self._missing:
                self._finished.set()

    def set_exception(self, error: Exception) -> None:
        """Make :meth:`result` raise, unless all grades are set."""
        with self._lock:
            if not self._finished.is_set():
                self._error = error
                self._finished.set()
