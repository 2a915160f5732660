"""Graders on other nodes of the Ray cluster: each is an actor there, with a grader process of its own."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from esplug.rewards.grader_process import GraderProcess
from esplug.rewards.grades import Graded

#: One thread per grader, as there are as many graders as cores. No accelerator, as the engines own it.
_THREADS = ("MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": ""} | dict.fromkeys(_THREADS, "1")
COUNT_EVERY = 100  # completions between two counts of a grader's descendants

_LATE = 30.0  # seconds after a time limit until a node that does not answer counts as lost


class Node(NamedTuple):
    """A node of the Ray cluster: Ray's id, address and CPU cores."""

    id: str
    address: str
    cores: int


class GraderHost:
    """Actor that keeps a grader process on its node, and replaces it when it has died.

    Args:
        paths: the driver's ``sys.path``, which the process searches after the node's own.
        memory: as for :class:`.RewardPool`.
    """

    def __init__(self, paths: list[str], memory: float | None) -> None:
        self._environment = os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([*sys.path, *paths])}
        self._memory, self._served = memory, 0
        self._load: tuple[bytes, float] = b"", 0.0
        self._process: GraderProcess | None = None

    def load(self, request: bytes, timeout: float) -> Graded:
        """Start the process, and load the reward function in it, here and whenever it is replaced."""
        self._load = request, timeout
        return self._start()[1]

    def grade(self, request: bytes, timeout: float) -> Graded:
        """Grade one completion. Raises ``RuntimeError`` if the process had died and does not start any more."""
        process, self._served = self._process, self._served + 1
        crowded = process is not None and self._served % COUNT_EVERY == 0 and process.is_crowded()
        if process is None or process.dead or process.has_hung_up() or crowded:
            process, started = self._start()
            if started.failed:
                raise RuntimeError(started.traceback)
        return process.ask(request, timeout)

    def _start(self) -> tuple[GraderProcess, Graded]:
        if self._process is not None:
            self._process.close()
        self._process = GraderProcess(self._environment, self._memory)
        return self._process, self._process.ask(*self._load)


class RemoteGrader:
    """The driver's end of a :class:`GraderHost`, for one thread. It has the methods of :class:`.GraderProcess`.

    Args:
        actor: the host.
        address: of its node, for messages.
    """

    dead = False

    def __init__(self, actor: Any, address: str) -> None:
        self._actor, self.address = actor, address
        self._asks: Callable[..., Any] = actor.load.remote
        self._left = False

    def ask(self, request: bytes, timeout: float) -> Graded:
        """Send a request and wait for the reply. The first loads the reward function. Raises ``GraderLostError``."""
        import ray

        try:
            if self._left:  # a call could start another Ray
                raise GraderLostError(self.address)
            graded: Graded = ray.get(self._asks(request, timeout), timeout=timeout + _LATE)
        except Exception as error:  # the node or the actor has died, does not answer, or Ray has been shut down
            raise GraderLostError(self.address) from error
        self._asks = self._actor.grade.remote
        return graded

    def has_hung_up(self) -> bool:
        """Return ``False``: the next request finds out, and is not to blame."""
        return False

    def is_crowded(self) -> bool:
        """Return ``False``: the host looks after that."""
        return False

    def hang_up(self) -> None:
        """Kill the actor, so that a thread that waits for a reply stops waiting."""
        import ray

        self._left = True
        with suppress(Exception):  # Ray may have been shut down, which kills it, too
            ray.kill(self._actor)

    close = hang_up


class GraderLostError(Exception):
    """The grader cannot be reached any more, and no completion is to blame. Never leaves this room."""


def chosen(nodes: Sequence[Node], turn: int) -> Node | None:
    """Return the node of a grader: each is chosen in as many of the turns as it has cores. ``None`` without nodes."""
    rounds = [node for core in range(max((n.cores for n in nodes), default=0)) for node in nodes if core < node.cores]
    return rounds[turn % len(rounds)] if rounds else None
