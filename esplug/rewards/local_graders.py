"""Graders on this machine: threads of the driver start them, hand them completions, and replace them."""

import os
import sys
from collections import deque
from contextlib import closing

from esplug.errors import RunError, UserError
from esplug.rewards.flight import Flight
from esplug.rewards.grader_process import ENVIRONMENT, LOAD_TIMEOUT, GraderProcess
from esplug.rewards.grades import Graded
from esplug.rewards.grading_queue import GradingQueue
from esplug.rewards.replies import OUT_OF_MEMORY
from esplug.rewards.requests import Grading, Ungraded

MAX_FAILED_STARTS = 3


class LocalGraders:
    """Graders on this machine.

    Args:
        queue: what they grade.
        grading: how.
        count: number of graders.
        concurrency: completions that may be graded at once, over all graders, if the reward function awaits.
    """

    def __init__(self, queue: GradingQueue, grading: Grading, count: int, concurrency: int) -> None:
        self._queue, self._grading, self._count, self._concurrency = queue, grading, count, concurrency
        path = os.pathsep.join(map(os.path.abspath, sys.path))
        self._environment = os.environ | ENVIRONMENT | {"PYTHONPATH": path}

    def run(self, number: int) -> None:
        """Keep grader ``number`` running. ``PR_SET_PDEATHSIG`` ties the grader's life to this thread."""
        failures, lost, queue = 0, deque[Ungraded](), self._queue
        slots = len(range(number, self._concurrency, self._count))  # this grader's share
        load_request = self._grading.load_request(self._grading.timeout if slots > 1 else None)
        while not queue.closed.wait(failures):  # as many seconds as starts have failed
            try:
                process = GraderProcess(self._environment, self._grading.memory)
                with closing(process) as grader, queue.at_close(grader.hang_up):
                    start = grader.ask(load_request, LOAD_TIMEOUT)
                    if not start.failed:
                        failures = 0
                        queue.loaded.set()
                        if slots > 1:
                            self._grade_at_once(grader, number, slots, lost)
                        else:
                            self._grade_in_turn(grader, number)
                        continue
            except OSError as error:  # out of processes, file descriptors or memory, which may be temporary
                start = Graded.failure("error:OSError", f"{error}")
            failures += 1
            if failures == MAX_FAILED_STARTS or not queue.loaded.is_set():
                return self._give_up(start)

    def _grade_in_turn(self, grader: GraderProcess, number: int) -> None:
        """Grade one task after another until the grader has to be replaced or the queue closes."""
        served = False
        while not (served and grader.is_spent()) and (task := self._queue.next(wait=True)):
            if served and grader.has_hung_up():  # it died while idle, so no completion is to blame
                return self._queue.put(task)
            self._queue.grade(task, grader.ask, self._grading.timeout, number)
            served = True

    def _grade_at_once(self, grader: GraderProcess, number: int, slots: int, lost: deque[Ungraded]) -> None:
        """Grade up to ``slots`` tasks at once until the grader has to be replaced or the queue closes.

        Tasks in ``lost`` were under way when an earlier grader was killed. They are graded first, one at a time, so
        that only the one to blame fails. Tasks that this grader loses are added.
        """
        queue, under_way, served, retires = self._queue, Flight(grader, slots, self._grading.timeout), False, False
        while not (grader.dead or queue.closed.is_set() or (retires and not under_way)):
            alone = bool(lost)
            while under_way.has_room and not retires and not (alone and under_way):
                task = lost.popleft() if lost else queue.next(wait=not under_way)
                if task is None:
                    break
                # A grader that died while idle has no completion to blame.
                if served and not under_way and grader.has_hung_up():
                    return queue.put(task)
                queue.settle(number, *under_way.send(task))
                served, retires = True, grader.is_crowded()
            queue.settle(number, *under_way.receive())
            while alone and under_way and not grader.dead:
                queue.settle(number, *under_way.receive())
        lost.extend(under_way.lost())

    def _give_up(self, start: Graded) -> None:
        """Fail all pending rewards, because graders do not start."""
        name, trace = self._grading.name, start.traceback or ""
        cause = trace.splitlines()[-1]
        if self._queue.loaded.is_set():
            return self._queue.fail(RunError(f"{name} no longer loads in another process ({cause})"), trace)
        remedy = "define it in an installed module or one on PYTHONPATH, so that other processes can import it"
        if start.reward.label == OUT_OF_MEMORY:
            remedy = f"give it more than the {self._grading.memory} GiB of --reward-memory"
        self._queue.fail(UserError(f"{name} does not load in another process ({cause}); {remedy}"), trace)
