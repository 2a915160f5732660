"""Graders on other nodes of the Ray cluster: each is an actor there, with a grader process of its own."""

import itertools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any

from esplug.errors import UserError
from esplug.rewards.grader_process import ENVIRONMENT, LOAD_TIMEOUT, GraderProcess
from esplug.rewards.grades import Graded
from esplug.rewards.grading_queue import GradingQueue
from esplug.rewards.requests import Grading
from esplug.utils.ray_nodes import RayNode, on_node

NODE_WAIT = 5.0  # seconds between two looks for a node on which to replace a grader
_LATE = 30.0  # seconds after a time limit until a node that does not answer counts as lost


class GraderHost:
    """Actor that keeps a grader process on its node, and replaces it when it has died.

    Args:
        paths: the driver's ``sys.path``, which the process searches after the node's own.
        memory: as for :class:`.RewardPool`.
    """

    def __init__(self, paths: list[str], memory: float | None) -> None:
        self._environment = os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([*sys.path, *paths])}
        self._memory = memory
        self._load: tuple[bytes, float] = b"", 0.0
        self._process: GraderProcess | None = None

    def load(self, request: bytes, timeout: float) -> Graded:
        """Start the process, and load the reward function in it, here and whenever it is replaced."""
        self._load = request, timeout
        return self._start()[1]

    def grade(self, request: bytes, timeout: float) -> Graded:
        """Grade one completion. Raises ``RuntimeError`` if the process had died and does not start any more."""
        process = self._process
        if process is None or process.is_spent():
            process, started = self._start()
            if started.failed:
                raise RuntimeError(started.traceback)
        return process.ask(request, timeout)

    def _start(self) -> tuple[GraderProcess, Graded]:
        if self._process is not None:
            self._process.close()
        self._process = GraderProcess(self._environment, self._memory)
        return self._process, self._process.ask(*self._load)


class RemoteGraders:
    """Graders on other nodes, until this machine leaves the cluster.

    Args:
        queue: what they grade.
        grading: how.
        nodes: returns the other nodes that are alive.
        first: number of the first of these graders.
    """

    def __init__(
        self,
        queue: GradingQueue,
        grading: Grading,
        nodes: Callable[[], Sequence[RayNode]],
        first: int,
    ) -> None:
        self._queue, self._grading, self._nodes = queue, grading, nodes
        self._first, self._left = first, threading.Event()
        self._graders: dict[int, RemoteGrader] = {}

    def run(self, number: int) -> None:
        """Keep grader ``number`` running."""
        paths = list(map(os.path.abspath, sys.path))
        load_request = self._grading.load_request(None)
        for turn in itertools.count(number - self._first):
            node = chosen(self._nodes(), turn) if not self._left.is_set() else None
            if self._queue.closed.is_set() or self._left.is_set():
                return
            if node is None:
                self._left.wait(NODE_WAIT)
                continue
            actor = on_node(node.id, GraderHost).remote(paths, self._grading.memory)
            self._graders[number] = grader = RemoteGrader(actor)
            with suppress(GraderLostError), closing(grader), self._queue.at_close(grader.hang_up):
                start = grader.ask(load_request, LOAD_TIMEOUT)
                if start.failed:
                    return self._give_up(start, node.address)
                while task := self._queue.next(wait=True):
                    try:
                        self._queue.grade(task, grader.ask, self._grading.timeout, number)
                    except GraderLostError:
                        self._queue.put(task)
                        raise

    def leave(self) -> None:
        """End all graders."""
        self._left.set()
        for grader in list(self._graders.values()):
            grader.hang_up()

    def _give_up(self, start: Graded, address: str) -> None:
        """Fail all pending rewards, because the reward function does not load on a node."""
        trace = start.traceback or ""
        what = f"{self._grading.name} does not load on node {address} ({trace.splitlines()[-1]})"
        remedy = "install the same packages there, or leave out --reward-workers"
        self._queue.fail(UserError(f"{what}; {remedy}"), trace)


class RemoteGrader:
    """The driver's end of a :class:`.GraderHost`, for one thread."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._asks: Callable[..., Any] = actor.load.remote
        self._left = False

    def ask(self, request: bytes, timeout: float) -> Graded:
        """Send a request and wait for the reply. The first loads the reward function. Raises ``GraderLostError``."""
        import ray

        try:
            if self._left:  # a call could start another Ray
                raise GraderLostError
            graded: Graded = ray.get(self._asks(request, timeout), timeout=timeout + _LATE)
        except Exception as error:  # the node or the actor has died, does not answer, or Ray has been shut down
            raise GraderLostError from error
        self._asks = self._actor.grade.remote
        return graded

    def hang_up(self) -> None:
        """Kill the actor, so that a thread that waits for a reply stops waiting."""
        import ray

        self._left = True
        with suppress(Exception):  # Ray may have been shut down, which kills it, too
            ray.kill(self._actor)

    close = hang_up


class GraderLostError(Exception):
    """The grader cannot be reached any more, and no completion is to blame. Never leaves this room."""


def chosen(nodes: Sequence[RayNode], turn: int) -> RayNode | None:
    """Return the node of a grader: each is chosen in as many of the turns as it has cores. ``None`` without nodes."""
    rounds = [node for core in range(max((n.cores for n in nodes), default=0)) for node in nodes if core < node.cores]
    return rounds[turn % len(rounds)] if rounds else None
