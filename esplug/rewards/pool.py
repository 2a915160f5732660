"""Pool of grader processes that score completions while the engines generate.

A reward function may raise, hang in C, crash or fork. Each grader is therefore a process of its own
(:mod:`esplug.rewards.grader`), started fresh rather than forked, that never imports the driver's ``__main__``. One
driver thread per grader hands it one completion at a time, or several to a reward function that awaits a server. If a
grader exceeds the time or memory limit, the thread kills it with all its descendants and starts another. This is no
sandbox against malicious code.

Memory is limited twice. ``RLIMIT_DATA``, which does not count reserved address space, makes a process's allocation fail
at once. Each child process has that limit to itself, so while a reply is pending the driver also adds up the memory of
grader and descendants five times a second. If the machine still runs out of memory, the kernel kills a grader first.
"""

import atexit
import itertools
import math
import os
import pickle
import queue
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Self, TypeVar

import cloudpickle

from esplug.data.conversation import Conversation
from esplug.errors import RunError, UserError
from esplug.hookspecs import Message
from esplug.plugins.task import Task
from esplug.rewards.flight import Flight
from esplug.rewards.grader_process import GraderProcess
from esplug.rewards.grades import Graded, PendingRewards
from esplug.rewards.remote_grader import (
    COUNT_EVERY,
    ENVIRONMENT,
    GraderHost,
    GraderLostError,
    Node,
    RemoteGrader,
    chosen,
)
from esplug.rewards.replies import OUT_OF_MEMORY
from esplug.rewards.requests import Ungraded
from esplug.rewards.user_functions import name_of
from esplug.utils.cores import usable_cores
from esplug.utils.text import brief

LOAD_TIMEOUT = 300.0  # seconds for a grader to import the reward function
CLOSE_TIMEOUT = 10.0  # seconds to wait for a thread whose grader survives SIGKILL for a while
MAX_PROCESSES = 16
MAX_FAILED_STARTS = 3
NODE_WAIT = 5.0  # seconds between two looks for a node on which to replace a grader

Grader = TypeVar("Grader", GraderProcess, RemoteGrader)


class RewardPool:
    """Processes that grade completions with one reward function. :meth:`start` or ``with`` starts them.

    Each process calls ``reward_function(output, target)`` in its main thread, with ``fast=False`` and with ``messages``
    if it has parameters of these names, and awaits the result if it is awaitable; see
    :func:`esplug.rewards.replies.as_reward` for the allowed results. The function is sent with cloudpickle, so lambdas,
    partials and functions of the user's own script work.
    The process has the driver's ``sys.path`` and environment, but no GPU and no standard input, and its standard output
    is discarded.

    Args:
        reward_function: grades one completion.
        timeout: seconds that grading one completion may take, without starting the process.
        memory: GiB that one grader may use, including its imports and descendants; ``None`` for no limit.
        processes: number of graders; by default one for each core that this process may use, at most 16.
        concurrency: completions that may be graded at once, over all graders, if the reward function awaits; ``None``
            for one per grader. There are not more graders than that.
        turn_function: replies to the model, ``(messages, target)`` to messages, in a task of several turns.

    Attributes:
        name: the reward function, for error messages.
    """

    def __init__(
        self,
        reward_function: Callable[..., Any],
        *,
        timeout: float,
        memory: float | None = None,
        processes: int | None = None,
        concurrency: int | None = None,
        turn_function: Callable[..., Any] | None = None,
    ) -> None:
        if not 0 < timeout < math.inf:
            raise UserError(f"the reward function's timeout must be a positive number of seconds, not {timeout}")
        if memory is not None and not 0 < memory < math.inf:
            raise UserError(f"the memory of a reward process must be a positive number of GiB, not {memory}")
        if processes is not None and processes < 1:
            raise UserError(f"the number of reward processes must be at least 1, not {processes}")
        if concurrency is not None and concurrency < 1:
            raise UserError(f"the number of answers graded at once must be at least 1, not {concurrency}")
        self.timeout, self.memory = timeout, memory
        most = processes or min(len(usable_cores()), MAX_PROCESSES)
        self.processes = min(most, concurrency or most)
        self._concurrency = concurrency or self.processes
        self._functions = reward_function, turn_function
        owner = getattr(reward_function, "__self__", None)
        own_name = name_of(reward_function)
        self.name = f"the reward of {owner.info}" if isinstance(owner, Task) else f"the reward function {own_name}"
        self._driver = os.getpid()
        self._pickled = b""
        self._environment: dict[str, str] = {}
        self._tasks: queue.PriorityQueue[tuple[int, int, Ungraded | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()  # of the tasks, so that those of one kind stay in order
        self._pending: weakref.WeakSet[PendingRewards] = weakref.WeakSet()
        self._threads: list[threading.Thread] = []
        self._graders: set[GraderProcess | RemoteGrader] = set()
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
        """Start the graders and wait until the first one has loaded the reward function."""
        self.begin()
        self.ready()

    def begin(self) -> None:
        """Start the graders without waiting for them.

        Raises:
            UserError: the reward function cannot be pickled.
        """
        if self._threads or self._closed.is_set():
            raise RuntimeError("a reward pool starts once")
        try:
            self._pickled = cloudpickle.dumps(self._functions)
        except Exception as error:
            raise UserError(
                f"{self.name} cannot be sent to another process ({error}); "
                "create what cannot be pickled inside the function instead of capturing it"
            ) from error
        path = os.pathsep.join(map(os.path.abspath, sys.path))
        self._environment = os.environ | ENVIRONMENT | {"PYTHONPATH": path}
        atexit.register(self.close)
        self._threads = [
            threading.Thread(target=self._run_grader, args=(number,), name=f"esplug-grader-{number}", daemon=True)
            for number in range(self.processes)
        ]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def spread(
        self, count: int, nodes: Callable[[], Sequence[Node]], on_node: Callable[[str, type], Any]
    ) -> Iterator[None]:
        """Have ``count`` graders more on other nodes of the Ray cluster, in proportion to their cores.

        A grader whose node is lost is replaced on another one, and the completion that it had is graded again.

        Args:
            nodes: returns the other nodes that are alive.
            on_node: makes a class an actor on a node, given Ray's id of it.
        """
        left = threading.Event()
        threads = [
            threading.Thread(
                target=self._run_remote_grader,
                args=(number, nodes, on_node, left),
                name=f"esplug-grader-{number}",
                daemon=True,
            )
            for number in range(self.processes, self.processes + count)
        ]
        self._threads += threads
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            left.set()
            with self._lock:
                remote = [each for each in self._graders if isinstance(each, RemoteGrader)]
            for grader in remote:
                grader.hang_up()

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

    def submit(
        self, outputs: Sequence[str], targets: Sequence[Any], conversations: Sequence[Conversation | None] | None = None
    ) -> PendingRewards:
        """Queue completions for grading and return at once.

        Args:
            outputs: B generated texts.
            targets: their B targets; anything that pickle or cloudpickle can pickle.
            conversations: B conversations that ended with the texts, in a task of several turns. One that failed gets
                its grade without grading.

        Raises:
            UserError: a target cannot be pickled.
            RunError: graders no longer start.
            RuntimeError: the pool is not open.
        """
        pending, tasks = PendingRewards(len(outputs)), []
        rows = zip(outputs, targets, conversations or itertools.repeat(None, len(outputs)), strict=True)
        for index, (output, target, conversation) in enumerate(rows):
            if conversation and conversation.failure:
                pending.set_grade(index, Graded.failure(*conversation.failure))
                continue
            messages = conversation.messages if conversation else []
            tasks.append(Ungraded.completion(pending, index, output, target, messages))
        return self._queue(pending, tasks)

    def turn(self, conversations: Sequence[list[Message]], targets: Sequence[Any]) -> PendingRewards:
        """Queue conversations, so far, for the environment's replies, before all waiting completions; return at once.

        The result's :attr:`.Graded.reply` is the reply. Raises like :meth:`submit`.
        """
        pending = PendingRewards(len(conversations))
        rows = enumerate(zip(conversations, targets, strict=True))
        return self._queue(pending, [Ungraded.turn(pending, index, *row) for index, row in rows])

    def _queue(self, pending: PendingRewards, tasks: list[Ungraded]) -> PendingRewards:
        with self._lock:
            if not self._threads or self._closed.is_set():
                raise RuntimeError("the reward pool is closed" if self._threads else "start the reward pool first")
            if self._error:
                raise self._error
            self._pending.add(pending)
        for task in tasks:
            self._put(task)
        return pending

    def _put(self, task: Ungraded | None) -> None:
        """Queue a task: turns first, because engines wait for them; ``None``, which ends a thread, last."""
        order = 2 if task is None else 0 if task.is_turn else 1
        self._tasks.put((order, next(self._numbers), task))

    def close(self) -> None:
        """Kill the graders with all their descendants. Completions not yet graded raise an error."""
        if os.getpid() != self._driver:  # a fork of the driver must not hang up on the driver's graders
            return
        with self._lock:
            self._closed.set()
            for pending in self._pending:
                pending.set_exception(RunError("the reward pool was closed before it had graded these answers"))
            for grader in self._graders:
                grader.hang_up()
        for _ in self._threads:
            self._put(None)
        for thread in self._threads:
            thread.join(CLOSE_TIMEOUT)
        atexit.unregister(self.close)

    def _run_grader(self, number: int) -> None:
        """Keep one grader running. ``PR_SET_PDEATHSIG`` ties the grader's life to this thread."""
        failures, lost = 0, deque[Ungraded]()
        slots = len(range(number, self._concurrency, self.processes))  # this grader's share
        limit = self.timeout if slots > 1 else None
        load_request = pickle.dumps((os.environ.get("PYTHONPATH"), self._pickled, limit))
        while not self._closed.wait(failures):  # as many seconds as starts have failed
            try:
                with self._grader() as grader:
                    start = grader.ask(load_request, LOAD_TIMEOUT)
                    if not start.failed:
                        failures = 0
                        self._loaded.set()
                        if slots > 1:
                            self._grade_at_once(grader, number, slots, lost)
                        else:
                            self._grade_tasks(grader, number)
                        continue
            except OSError as error:  # out of processes, file descriptors or memory, which may be temporary
                start = Graded.failure("error:OSError", f"{error}")
            failures += 1
            if failures == MAX_FAILED_STARTS or not self._loaded.is_set():
                return self._give_up(start)

    def _run_remote_grader(
        self,
        number: int,
        nodes: Callable[[], Sequence[Node]],
        on_node: Callable[[str, type], Any],
        left: threading.Event,
    ) -> None:
        """Keep one grader running on another node, until this machine has ``left`` the cluster."""
        paths = list(map(os.path.abspath, sys.path))
        load_request = pickle.dumps((os.environ.get("PYTHONPATH"), self._pickled, None))
        for attempt in itertools.count(number - self.processes):
            node = chosen(nodes(), attempt) if not left.is_set() else None
            if self._closed.is_set() or left.is_set():
                return
            if node is None:
                left.wait(NODE_WAIT)
                continue
            actor = on_node(node.id, GraderHost).remote(paths, self.memory)
            with suppress(GraderLostError), self._kept(RemoteGrader(actor, node.address)) as grader:
                start = grader.ask(load_request, LOAD_TIMEOUT)
                if start.failed:
                    return self._give_up(start, node.address)
                self._grade_tasks(grader, number)

    @contextmanager
    def _grader(self) -> Iterator[GraderProcess]:
        with self._kept(GraderProcess(self._environment, self.memory)) as grader:
            yield grader

    @contextmanager
    def _kept(self, grader: Grader) -> Iterator[Grader]:
        """Close a grader at the end, and hang up on it when the pool closes."""
        with self._lock:
            self._graders.add(grader)
            if self._closed.is_set():
                grader.hang_up()
        try:
            yield grader
        finally:
            with self._lock:
                self._graders.discard(grader)
            grader.close()

    def _grade_tasks(self, grader: GraderProcess | RemoteGrader, number: int) -> None:
        """Grade tasks until the grader has to be replaced or the pool closes. Raises ``GraderLostError``."""
        for served in itertools.count():
            task = self._next(wait=True)
            if task is None or self._closed.is_set():
                return
            if served and grader.has_hung_up():  # it died while idle, so no completion is to blame
                return self._put(task)
            began, started = time.time(), time.perf_counter()
            try:
                graded = grader.ask(task.request, self.timeout)
            except GraderLostError:
                self._put(task)
                raise
            seconds = time.perf_counter() - started
            self._settle(number, (task, replace(graded, began=began, seconds=seconds)))
            if grader.dead or (served % COUNT_EVERY == COUNT_EVERY - 1 and grader.is_crowded()):
                return

    def _grade_at_once(self, grader: GraderProcess, number: int, slots: int, lost: deque[Ungraded]) -> None:
        """Grade up to ``slots`` tasks at once until the grader has to be replaced or the pool closes.

        Tasks in ``lost`` were under way when an earlier grader was killed. They are graded first, one at a time, so
        that only the one to blame fails. Tasks that this grader loses are added.
        """
        under_way, served, retires = Flight(grader, slots, self.timeout), 0, False
        while not (grader.dead or self._closed.is_set() or (retires and not under_way)):
            alone = bool(lost)
            while under_way.has_room and not retires and not (alone and under_way):
                task = lost.popleft() if lost else self._next(wait=not under_way)
                if task is None:
                    break
                # A grader that died while idle has no completion to blame.
                if served and not under_way and grader.has_hung_up():
                    return self._put(task)
                self._settle(number, *under_way.send(task))
                served += 1
                retires = served % COUNT_EVERY == 0 and grader.is_crowded()
            self._settle(number, *under_way.receive())
            while alone and under_way and not grader.dead:
                self._settle(number, *under_way.receive())
        lost.extend(under_way.lost())

    def _next(self, *, wait: bool) -> Ungraded | None:
        """Return the next task; ``None`` if there is none now, or if the pool closes."""
        with suppress(queue.Empty):
            return self._tasks.get(block=wait)[-1]
        return None

    def _settle(self, number: int, *graded: tuple[Ungraded, Graded]) -> None:
        """Hand over the grades of grader ``number``. A reward function that raised ``StopRun`` stops the pool."""
        for task, grade in graded:
            if grade.stops:
                self._fail(RunError(f"{self.name} stopped the run: {brief(grade.traceback or '', 500)}"))
            else:
                task.pending.set_grade(task.index, replace(grade, grader=number))

    def _give_up(self, start: Graded, node: str = "") -> None:
        """Fail all pending rewards, because graders do not start, here or on a ``node``."""
        trace = start.traceback or ""
        cause = trace.splitlines()[-1]
        error: Exception
        if node:
            error = UserError(
                f"{self.name} does not load on node {node} ({cause}); install the same packages there, "
                "or leave out --reward-workers"
            )
        elif self._loaded.is_set():
            error = RunError(f"{self.name} no longer loads in another process ({cause})")
        else:
            remedy = "define it in an installed module or one on PYTHONPATH, so that other processes can import it"
            if start.reward.label == OUT_OF_MEMORY:
                remedy = f"give it more than the {self.memory} GiB of --reward-memory"
            error = UserError(f"{self.name} does not load in another process ({cause}); {remedy}")
        error.__cause__ = RuntimeError(trace)
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Fail all pending rewards and further submissions."""
        with self._lock:
            self._error = self._error or error
            for pending in self._pending:
                pending.set_exception(self._error)
        self._loaded.set()
