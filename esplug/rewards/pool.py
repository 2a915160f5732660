"""Grading in processes that can be killed, while the engines generate.

A reward function is anybody's code and reads what a model wrote: it may raise, hang in C, crash or fork. So
each grader is a process of its own (:mod:`esplug.rewards.grader`), started fresh rather than forked, that never sees
the driver's ``__main__``; one driver thread tends it, hands it one answer at a time, and when it has used up its
time or memory kills it with everything it has started and puts another in its place. This shields the run from
accidents; it is no sandbox against code that means harm.

Memory is limited twice. A limit of the system's (``RLIMIT_DATA``, which leaves out what is only reserved) makes a
single process's allocation fail at once, however large it is. Each child has that limit to itself, so while a reply
is late the driver also adds up, five times a second, what grader and descendants hold. Should the machine's memory
run out all the same, the system takes a grader first.
"""

import atexit
import itertools
import json
import math
import os
import pickle
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self

import cloudpickle

from esplug.errors import RunError, UserError
from esplug.hookspecs import Reward
from esplug.rewards.grader import OUT_OF_MEMORY, PROCESS_DIED
from esplug.utils.cores import GIB, usable_cores
from esplug.utils.process_tree import descendants, kill_descendants, memory_exceeds

LOAD_TIMEOUT = 300.0  # seconds in which a grader must have imported the reward function
SEND_TIMEOUT = 60.0  # seconds in which a grader must have taken delivery of an answer
CLOSE_TIMEOUT = 10.0  # seconds that closing waits for a grader that even SIGKILL does not end at once
WATCH_INTERVAL = 0.2  # seconds between two looks at the memory of a grader that lets wait
LONGEST_REPLY = 1 << 20  # bytes; what is longer is no reply
MOST_PROCESSES = 16
MOST_DESCENDANTS = 64  # a grader with more, left over from its answers, is replaced
COUNT_EVERY = 100  # answers, after which a grader's descendants are counted
MOST_FAILED_STARTS = 3

#: One thread per grader: there are as many graders as cores. No accelerator: the engines own it.
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Graded:
    """How grading one answer went.

    Attributes:
        reward: what the reward function gave. Of a failed grading: value 0.0 and the label ``timeout``,
            ``error:<Type>`` for an exception (``SystemExit`` too), ``error:TypeError`` for a result that is no
            reward, ``error:NonFinite`` for an infinite or undefined one, ``error:MemoryError`` for more memory than
            allowed, ``error:ProcessDied`` for a crash (one after a failed allocation in C looks like any other).
        failed: whether grading failed.
        traceback: what is known about the failure; long ones lack their middle.
        grader: number of the process that graded; ``None`` if none did.
        began: when it was asked, in Unix seconds.
        seconds: that it took.
    """

    reward: Reward
    failed: bool = False
    traceback: str | None = None
    grader: int | None = field(default=None, compare=False)
    began: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)


class PendingRewards:
    """The rewards of one :meth:`RewardPool.submit`, some of which may still be on their way."""

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
        """Return the rewards of answers that need no grading, because something else went wrong."""
        pending = cls(count)
        for index in range(count):
            pending._settle(index, _failure(label, why))
        return pending

    def done(self) -> bool:
        """Whether :meth:`result` would return, or raise, at once."""
        return self._finished.is_set()

    def result(self) -> list[Graded]:
        """Wait for the rewards, in the order of the answers.

        Raises:
            RunError: the pool was closed, or could not go on, before all answers were graded.
        """
        self._finished.wait()
        if self._error:
            raise self._error
        return [graded for graded in self._graded if graded]

    def _settle(self, index: int, graded: Graded) -> None:
        with self._lock:
            self._graded[index] = graded
            self._missing -= 1
            if not self._missing:
                self._finished.set()

    def _abandon(self, error: Exception) -> None:
        with self._lock:
            if not self._finished.is_set():
                self._error = error
                self._finished.set()


@dataclass(frozen=True, slots=True)
class _Answer:
    pending: PendingRewards
    index: int
    request: bytes


class RewardPool:
    """Processes that grade answers with one reward function.

    The reward function is called as ``reward_function(output, target)``, in the main thread of its process,
    with ``fast=False`` if it has a parameter of that name; :func:`esplug.rewards.grader.as_reward` says what it may
    return. It travels by cloudpickle, so that lambdas, partials and functions of the user's own script will do.
    It finds the driver's ``sys.path`` and environment, but no GPU, no input, and nobody reads what it prints.
    """

    def __init__(
        self,
        reward_function: Callable[..., Any],
        *,
        timeout: float,
        memory: float | None = None,
        processes: int | None = None,
    ) -> None:
        """Make a pool; :meth:`start` or ``with`` starts it.

        Args:
            reward_function: grades one answer.
            timeout: seconds that grading one answer may take; starting a process does not count.
            memory: GiB that one grader may take, with what it imports and starts; ``None`` for no limit.
            processes: number of graders; by default one for each core this process may use, at most 16.
        """
        if not 0 < timeout < math.inf:
            raise UserError(f"the reward function's timeout must be a positive number of seconds, not {timeout}")
        if memory is not None and not 0 < memory < math.inf:
            raise UserError(f"the memory of a reward process must be a positive number of GiB, not {memory}")
        if processes is not None and processes < 1:
            raise UserError(f"the number of reward processes must be at least 1, not {processes}")
        self.timeout = timeout
        self.memory = memory
        self.processes = processes or min(len(usable_cores()), MOST_PROCESSES)
        self._reward_function = reward_function
        self._name = getattr(reward_function, "__qualname__", None) or repr(reward_function)
        self._driver = os.getpid()
        self._setup = b""
        self._environment: dict[str, str] = {}
        self._answers: queue.SimpleQueue[_Answer | None] = queue.SimpleQueue()
        self._pending: weakref.WeakSet[PendingRewards] = weakref.WeakSet()
        self._threads: list[threading.Thread] = []
        self._graders: set[_Grader] = set()
        self._loaded = threading.Event()
        self._closed = threading.Event()
        self._error: Exception | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the graders and wait until the first has loaded the reward function: :meth:`begin`, :meth:`ready`."""
        self.begin()
        self.ready()

    def begin(self) -> None:
        """Start the graders, without waiting for them.

        Raises:
            UserError: the reward function cannot be pickled.
        """
        if self._threads or self._closed.is_set():
            raise RuntimeError("a reward pool starts once")
        try:
            function = cloudpickle.dumps(self._reward_function)
        except Exception as error:
            raise UserError(
                f"the reward function {self._name} cannot be sent to another process ({error}); "
                "have it make, rather than capture, what cannot be pickled"
            ) from error
        self._setup = pickle.dumps((os.environ.get("PYTHONPATH"), function))
        path = os.pathsep.join(map(os.path.abspath, sys.path))
        self._environment = os.environ | _ENVIRONMENT | {"PYTHONPATH": path}
        atexit.register(self.close)
        self._threads = [
            threading.Thread(target=self._tend, args=(number,), name=f"esplug-grader-{number}", daemon=True)
            for number in range(self.processes)
        ]
        for thread in self._threads:
            thread.start()

    def ready(self) -> None:
        """Wait until the first grader has loaded the reward function.

        Raises:
            UserError: it cannot be loaded in another process.
        """
        try:
            self._loaded.wait()
            if self._error:
                raise self._error
        except BaseException:
            self.close()
            raise

    def submit(self, outputs: Sequence[str], targets: Sequence[Any]) -> PendingRewards:
        """Queue answers for grading and return at once.

        Args:
            outputs: B generated texts.
            targets: their B targets; whatever pickle or cloudpickle can pickle.

        Raises:
            UserError: a target cannot be pickled.
            RunError: graders no longer start.
            RuntimeError: the pool is not open.
        """
        pending = PendingRewards(len(outputs))
        answers = [
            _Answer(pending, index, pickle.dumps((output, _pickled(target, index))))
            for index, (output, target) in enumerate(zip(outputs, targets, strict=True))
        ]
        with self._lock:
            if not self._threads or self._closed.is_set():
                raise RuntimeError("the reward pool is closed" if self._threads else "start the reward pool first")
            if self._error:
                raise self._error
            self._pending.add(pending)
        for answer in answers:
            self._answers.put(answer)
        return pending

    def close(self) -> None:
        """Kill the graders with all they have started. Answers not yet graded are given up."""
        if os.getpid() != self._driver:  # a fork of the driver must not hang up on the driver's graders
            return
        with self._lock:
            self._closed.set()
            for pending in self._pending:
                pending._abandon(RunError("the reward pool was closed before it had graded these answers"))
            for grader in self._graders:
                grader.hang_up()
        for _ in self._threads:
            self._answers.put(None)
        for thread in self._threads:
            thread.join(CLOSE_TIMEOUT)
        atexit.unregister(self.close)

    def _tend(self, number: int) -> None:
        """Keep one grader at work, in the one thread that its life depends on (see ``PR_SET_PDEATHSIG``)."""
        failures = 0
        while not self._closed.wait(failures):  # so many seconds between failed starts
            try:
                with self._grader() as grader:
                    start = grader.ask(self._setup, LOAD_TIMEOUT)
                    if not start.failed:
                        failures = 0
                        self._loaded.set()
                        self._feed(grader, number)
                        continue
            except OSError as error:  # out of processes, descriptors or memory, perhaps not for long
                start = _failure("error:OSError", f"{error}")
            failures += 1
            if failures == MOST_FAILED_STARTS or not self._loaded.is_set():
                return self._give_up(start)

    @contextmanager
    def _grader(self) -> "Iterator[_Grader]":
        with self._lock:
            grader = _Grader(self._environment, self.memory)
            self._graders.add(grader)
            if self._closed.is_set():
                grader.hang_up()
        try:
            yield grader
        finally:
            with self._lock:
                self._graders.discard(grader)
            grader.close()

    def _feed(self, grader: "_Grader", number: int) -> None:
        """Have the grader grade answers until it falls or the pool closes."""
        for served in itertools.count():
            answer = self._answers.get()
            if answer is None or self._closed.is_set():
                return
            if served and grader.has_hung_up():  # between two answers, so neither is to blame
                return self._answers.put(answer)
            began, started = time.time(), time.perf_counter()
            graded = grader.ask(answer.request, self.timeout)
            seconds = time.perf_counter() - started
            answer.pending._settle(answer.index, replace(graded, grader=number, began=began, seconds=seconds))
            if grader.dead or (served % COUNT_EVERY == COUNT_EVERY - 1 and grader.is_crowded()):
                return

    def _give_up(self, start: Graded) -> None:
        trace = start.traceback or ""
        what = f"the reward function {self._name} does not load in another process"
        remedy = "define it where that process can import it from, in an installed module or on PYTHONPATH"
        if start.reward.label == OUT_OF_MEMORY:
            remedy = f"give it more than the {self.memory} GiB of --reward-memory"
        error: Exception
        if self._loaded.is_set():
            error = RunError(f"{what} any more ({trace.splitlines()[-1]})")
        else:
            error = UserError(f"{what} ({trace.splitlines()[-1]}); {remedy}")
        error.__cause__ = RuntimeError(trace)
        with self._lock:
            self._error = error
            for pending in self._pending:
                pending._abandon(error)
        self._loaded.set()


class _Grader:
    """A grading process, under its supervisor, and the driver's end of the line to them, in the hands of one thread.

    Only :meth:`hang_up` may be called from another thread, before :meth:`close`.
    """

    def __init__(self, environment: dict[str, str], memory: float | None) -> None:
        self._limit = math.inf if memory is None else memory * GIB
        limit = "" if memory is None else str(math.ceil(self._limit))
        self._link, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        "esplug.rewards.grader",
                        str(theirs.fileno()),
                        str(os.getpid()),
                        limit,
                    ],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    start_new_session=True,
                )
        except BaseException:
            self._link.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._link, select.POLLIN)

    @property
    def dead(self) -> bool:
        """Whether :meth:`kill` has been here."""
        return self._process.returncode is not None

    def has_hung_up(self) -> bool:
        """Whether the process, of which nothing is asked, has died (or says something nevertheless)."""
        return bool(self._poll.poll(0))

    def is_crowded(self) -> bool:
        """Whether answers have left too many processes behind, zombies included."""
        return len(descendants(self._process.pid)) > MOST_DESCENDANTS

    def ask(self, request: bytes, timeout: float) -> Graded:
        """Send a request and wait for the reply; where none comes in time, or ever, kill the process."""
        try:
            self._link.settimeout(SEND_TIMEOUT)
            self._link.sendall(request)
            value, label, correct, metrics, trace = json.loads(self._receive(timeout))
            if not (isinstance(value, float) and isinstance(label, str) and isinstance(metrics, dict)):
                raise TypeError("no reply")
        except TimeoutError:
            self.kill()
            return _failure("timeout", f"no answer within {timeout:g} s")
        except _OverLimit:
            self.kill()
            limit = f"{self._limit / GIB:g} GiB"
            return _failure(OUT_OF_MEMORY, f"killed: the grading process and what it had started held over {limit}")
        except Exception:  # the line went dead, or what came over it is no reply
            self.kill()
            return _failure(PROCESS_DIED, "the line to the grading process went dead, or carried what is no reply")
        if label in (OUT_OF_MEMORY, PROCESS_DIED):  # what filled its memory may still be there
            self.kill()
        return Graded(Reward(value, label, correct, metrics), trace is not None, trace)

    def _receive(self, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            self._link.settimeout(max(min(left, WATCH_INTERVAL), 1e-3))
            try:
                received = self._link.recv(1 << 16)
            except TimeoutError:
                if left <= WATCH_INTERVAL:
                    raise
                if memory_exceeds(self._process.pid, self._limit):
                    raise _OverLimit from None
                continue
            line += received
            if not received or len(line) > LONGEST_REPLY or b"\n" in line[:-1]:
                raise EOFError
        return line

    def kill(self) -> None:
        """Kill the process and all it has started, whatever has become of it, and reap it."""
        if not self.dead:  # so its id is still its own
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGSTOP)  # an orphan still becomes its child, but it starts no other
            kill_descendants(self._process.pid)
            self._process.kill()
            self._process.wait()

    def hang_up(self) -> None:
        """End the conversation, so that whoever waits for a reply stops waiting."""
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Kill the process and free the line."""
        self.kill()
        self._link.close()


class _OverLimit(Exception):  # noqa: N818 - never leaves this module
    """A grader holds more memory than it may."""


def _failure(label: str, detail: str) -> Graded:
    return Graded(Reward(0.0, label), True, detail)


def _pickled(target: object, index: int) -> bytes:
    """Pickle a target so that a process with another ``__main__`` can load it."""
    with suppress(Exception):
        pickled = pickle.dumps(target)
        if b"__main__" not in pickled:
            return pickled
    try:
        by_value: bytes = cloudpickle.dumps(target)
        return by_value
    except Exception as error:
        raise UserError(
            f"target {index} ({type(target).__name__}) cannot be pickled ({error}); "
            "have the task's collate return plain data"
        ) from error
