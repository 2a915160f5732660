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
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import cloudpickle

from esplug.data.conversation import Conversation
from esplug.errors import UserError
from esplug.hookspecs import Message
from esplug.plugins.task import Task
from esplug.rewards.grades import Graded, PendingRewards
from esplug.rewards.grading_queue import GradingQueue
from esplug.rewards.local_graders import LocalGraders
from esplug.rewards.remote_graders import RemoteGraders
from esplug.rewards.requests import Grading, Ungraded
from esplug.rewards.user_functions import name_of
from esplug.utils.cores import usable_cores
from esplug.utils.ray_nodes import RayNode

CLOSE_TIMEOUT = 10.0  # seconds to wait for a thread whose grader survives SIGKILL for a while
MAX_PROCESSES = 16


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
        self._queue = GradingQueue(self.name)
        self._threads: list[threading.Thread] = []

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
        if self._threads or self._queue.closed.is_set():
            raise RuntimeError("a reward pool starts once")
        try:
            functions = cloudpickle.dumps(self._functions)
        except Exception as error:
            raise UserError(
                f"{self.name} cannot be sent to another process ({error}); "
                "create what cannot be pickled inside the function instead of capturing it"
            ) from error
        self._grading = Grading(self.name, functions, self.timeout, self.memory)
        atexit.register(self.close)
        local = LocalGraders(self._queue, self._grading, self.processes, self._concurrency)
        self._run(local.run, range(self.processes))

    @contextmanager
    def spread(self, count: int, nodes: Callable[[], Sequence[RayNode]]) -> Iterator[None]:
        """Have ``count`` graders more on other nodes of the Ray cluster, in proportion to their cores.

        A grader whose node is lost is replaced on another one, and the completion that it had is graded again.

        Args:
            nodes: returns the other nodes that are alive.
        """
        remote = RemoteGraders(self._queue, self._grading, nodes, self.processes)
        self._run(remote.run, range(self.processes, self.processes + count))
        try:
            yield
        finally:
            remote.leave()

    def _run(self, run: Callable[[int], None], numbers: Iterable[int]) -> None:
        """Start a thread for each grader."""
        threads = [
            threading.Thread(target=run, args=(number,), name=f"esplug-grader-{number}", daemon=True)
            for number in numbers
        ]
        self._threads += threads
        for thread in threads:
            thread.start()

    def ready(self) -> None:
        """Wait until the first grader has loaded the reward function.

        Raises:
            UserError: it cannot be loaded in another process.
        """
        try:
            self._queue.wait_until_loaded()
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
        return self._queued(pending, tasks)

    def turn(self, conversations: Sequence[list[Message]], targets: Sequence[Any]) -> PendingRewards:
        """Queue conversations, so far, for the environment's replies, before all waiting completions; return at once.

        The result's :attr:`.Graded.reply` is the reply. Raises like :meth:`submit`.
        """
        pending = PendingRewards(len(conversations))
        rows = enumerate(zip(conversations, targets, strict=True))
        return self._queued(pending, [Ungraded.turn(pending, index, *row) for index, row in rows])

    def _queued(self, pending: PendingRewards, tasks: list[Ungraded]) -> PendingRewards:
        if not self._threads:
            raise RuntimeError("start the reward pool first")
        self._queue.submit(pending, tasks)
        return pending

    def close(self) -> None:
        """Kill the graders with all their descendants. Completions not yet graded raise an error."""
        if os.getpid() != self._driver:  # a fork of the driver must not hang up on the driver's graders
            return
        self._queue.close()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(CLOSE_TIMEOUT)
        atexit.unregister(self.close)
