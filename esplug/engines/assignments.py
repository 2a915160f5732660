"""Assignments: which engine does which piece of work now, and which engines are idle."""

import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic

from esplug.engines.jobs import FollowUps, Job, Key, PromptStore
from esplug.engines.liveness import EngineSlot
from esplug.engines.messages import Generation
from esplug.engines.scheduler import Piece, WorkScheduler
from esplug.utils.console import say


@dataclass(frozen=True, slots=True)
class Assignment(Generic[Key]):
    """A piece that an engine does, and since when, on the monotonic clock."""

    slot: EngineSlot
    piece: Piece[Job[Key]]
    began: float


class Assignments(Generic[Key]):
    """Gives work to engines, as a scheduler decides.

    Args:
        slots: engines that are idle.
        jobs: to answer.
        later: jobs that follow from them.

    Attributes:
        running: what engines do, by Ray's reference to the result.
    """

    def __init__(self, slots: Iterable[EngineSlot], jobs: Iterable[Job[Key]], later: FollowUps[Key]) -> None:
        self._scheduler: WorkScheduler[Job[Key]] = WorkScheduler(jobs, Job.n_mini_batches)
        self._later, self._prompts = later, PromptStore()
        self.idle = deque(slots)
        self.running: dict[Any, Assignment[Key]] = {}

    def hand_out(self) -> float:
        """Give work to idle engines. Returns the time at which there may be more for those that are left."""
        for after, job in self._later.ready():
            self._scheduler.add(job, after)
        now, first = time.monotonic(), math.inf
        for _ in range(len(self.idle)):
            slot = self.idle.popleft()
            enough = slot.idle_since + self._scheduler.switch_seconds
            piece = self._scheduler.take(slot.index, self._later.awaited() if now < enough else ())
            if piece is None:
                self.idle.append(slot)
                first = min(first, enough) if now < enough else first
                continue
            self._give(slot, piece)
        return first if self._later.awaited() else self._back_up()

    def done(self, ref: Any, result: list[Generation]) -> list[tuple[Any, EngineSlot]]:
        """Note that an engine has done a piece. Returns what other engines do for nothing now, and these engines."""
        slot, work = self.running.pop(ref).slot, result[0].work
        seconds = sum(each.switch_seconds for each in work), sum(each.generate_seconds for each in work)
        late = self._scheduler.done(slot.index, *seconds)
        self.add(slot)
        refs = [other for other, each in self.running.items() if each.slot.index in late]
        return [(other, self.running.pop(other).slot) for other in refs]

    def failed(self, ref: Any) -> None:
        """Note that an engine has failed: another does its piece."""
        self._scheduler.requeue(self.running.pop(ref).slot.index)

    def add(self, slot: EngineSlot) -> None:
        """Take in an engine that has nothing to do."""
        slot.idle_since = time.monotonic()
        self.idle.append(slot)

    def _give(self, slot: EngineSlot, piece: Piece[Job[Key]]) -> None:
        job, seeds = piece.job, piece.job.seeds[piece.job.mini_batch(piece.number)]
        ref = slot.actor.generate.remote(job.weights, self._prompts.ref(piece), seeds, job.sampling)
        self.running[ref] = Assignment(slot, piece, time.monotonic())

    def _back_up(self) -> float:
        """Have idle engines do what others are late with. Returns the time at which another piece may be late."""
        import ray

        while self.idle and self.running:
            now, by_engine = time.monotonic(), {each.slot.index: ref for ref, each in self.running.items()}
            worked = {index: now - self.running[ref].began for index, ref in by_engine.items()}
            seconds, engine, other = self._scheduler.late([slot.index for slot in self.idle], worked)
            if seconds > 0:
                return now + seconds
            if ray.wait([by_engine[other]], timeout=0)[0]:  # it was done while the driver was busy
                break
            slot = next(slot for slot in self.idle if slot.index == engine)
            self.idle.remove(slot)
            self._give(slot, self._scheduler.back_up(engine, other))
            _say_late(self.running[by_engine[other]].slot, worked[other], slot)
        return math.inf


def _say_late(slot: EngineSlot, seconds: float, other: EngineSlot) -> None:
    """Say once of each engine that it is late."""
    if not slot.said_late:
        where = f" on {slot.address}" if slot.address else ""
        say(
            f"engine {slot.index}{where} has not done its work after {seconds:.0f} s; engine {other.index} does it, too"
        )
    slot.said_late = True
