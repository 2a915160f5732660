"""Work scheduler: decides which engine does what next. Uses neither clocks nor Ray, so simulations can drive it."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from esplug.engines.pace import Paces

Job = TypeVar("Job")


@dataclass(slots=True, eq=False)
class _StartedJob(Generic[Job]):
    """A job that at least one engine has started, with the jobs that follow from it."""

    left: list[tuple[Job, int]]  # pieces that no engine has taken; the next one is last
    engines: set[int] = field(default_factory=set)  # those that hold the job's weights and will ask for more of it
    lost: bool = False  # whether an engine failed on a piece that is left


@dataclass(frozen=True, slots=True)
class Piece(Generic[Job]):
    """Piece ``number`` of a job: what an engine does at a time."""

    job: Job
    number: int
    started: _StartedJob[Job]


class WorkScheduler(Generic[Job]):
    """Hands out the pieces of jobs to engines that ask for work.

    Switching an engine to a job's weights takes time, so an engine stays with a job until no piece of it is left, and
    then starts the next job. When there is no job to start, an idle engine helps with the job that would take longest,
    if its help would arrive in time. When no piece is left to take, it also does one that another engine is late with
    (:meth:`late`), like a backup task of MapReduce, and the first answers count. They do not depend on the engine.

    A job can be followed by others that need its weights (:meth:`add`). An engine that still holds the weights does
    them first, and can wait for them. Other engines first start the jobs that nobody has started, which have the
    longest way to go.

    Args:
        jobs: consumed one by one, as engines ask.
        pieces: number of pieces of a job; at least 1.
    """

    def __init__(self, jobs: Iterable[Job], pieces: Callable[[Job], int]) -> None:
        self._jobs, self._pieces = iter(jobs), pieces
        self._unfinished: list[_StartedJob[Job]] = []  # with pieces left
        self._current: dict[int, _StartedJob[Job]] = {}  # by engine
        self._working: dict[int, Piece[Job]] = {}  # by engine
        self._paces = Paces()

    @property
    def switch_seconds(self) -> float:
        """How long a switch of weights takes, on average; 0 before the first."""
        return self._paces.all.switch.mean

    def take(self, engine: int, awaited: Iterable[Piece[Job]] = ()) -> Piece[Job] | None:
        """Return the next piece for an idle engine; ``None`` if there is no work for it now.

        Args:
            engine: its number.
            awaited: pieces that will be followed by others. If one is of the job whose weights the engine holds, there
                is no work for it now.
        """
        started = self._current.get(engine)
        if started is None or not started.left:
            if any(piece.started is started for piece in awaited):
                return None
            self._leave(engine)
            started = self._lost() or self._next() or self._abandoned() or self._worth_helping()
            if started is None:
                return None
        job, number = started.left.pop()
        if not started.left:
            self._unfinished.remove(started)
            started.lost = False
        return self._begin(engine, Piece(job, number, started))

    def late(self, idle: Iterable[int], worked: Mapping[int, float]) -> tuple[float, int, int]:
        """Return which piece is the first to be late, so that it is worth doing twice, when there is no other work.

        Args:
            idle: engines for which :meth:`take` has returned ``None``; at least one.
            worked: seconds that each engine at work has spent on its piece.

        Returns:
            The seconds until it is late, at most 0 if it is and infinity if there is none; the engine that is to do
            it, too; and the engine that does it.
        """
        fastest = min(idle, key=self._paces.needs)
        needs, shared = self._paces.needs(fastest), Counter(map(id, self._working.values()))
        alone = (other for other in worked if shared[id(self._working[other])] == 1)
        first = ((self._paces.until_late(other, worked[other], needs), fastest, other) for other in alone)
        return min(first, default=(math.inf, fastest, fastest))

    def back_up(self, engine: int, other: int) -> Piece[Job]:
        """Return the piece of another engine, which an idle engine is to do, too."""
        self._leave(engine)
        return self._begin(engine, self._working[other])

    def add(self, job: Job, after: Piece[Job]) -> None:
        """Add a job that follows from a piece that is done, and needs the same weights."""
        started = after.started
        if not started.left:
            self._unfinished.append(started)
        started.left[:0] = self._pieces_of(job)

    def done(self, engine: int, switch_seconds: float, seconds: float) -> list[int]:
        """Record that an engine has done its piece. Returns the engines that do the same piece, which is for nothing.

        Args:
            engine: its number.
            switch_seconds: how long it took to switch weights; 0 if the engine held them already.
            seconds: how long it took to answer then.
        """
        self._paces.add(engine, switch_seconds, seconds)
        piece = self._working.pop(engine)
        late = [other for other, same in self._working.items() if same is piece]
        for other in late:
            del self._working[other]
            self._leave(other)
        return late

    def requeue(self, engine: int) -> None:
        """Put back the piece of an engine that failed. The engine's replacement holds no job's weights."""
        self._leave(engine)
        piece = self._working.pop(engine)
        if any(same is piece for same in self._working.values()):
            return
        if not piece.started.left:
            self._unfinished.append(piece.started)
        piece.started.left.append((piece.job, piece.number))
        piece.started.lost = True

    def _begin(self, engine: int, piece: Piece[Job]) -> Piece[Job]:
        piece.started.engines.add(engine)
        self._current[engine], self._working[engine] = piece.started, piece
        return piece

    def _leave(self, engine: int) -> None:
        started = self._current.pop(engine, None)
        if started is not None:
            started.engines.remove(engine)

    def _lost(self) -> _StartedJob[Job] | None:
        """Return a job with a piece on which an engine failed, if no engine is left to do it."""
        return next((started for started in self._unfinished if started.lost and not started.engines), None)

    def _abandoned(self) -> _StartedJob[Job] | None:
        """Return a job that has been followed by others after its engines left it."""
        return next((started for started in self._unfinished if not started.engines), None)

    def _next(self) -> _StartedJob[Job] | None:
        for job in self._jobs:
            self._unfinished.append(_StartedJob(self._pieces_of(job)))
            return self._unfinished[-1]
        return None

    def _pieces_of(self, job: Job) -> list[tuple[Job, int]]:
        """Return the pieces of a job, the first one last."""
        return [(job, number) for number in reversed(range(self._pieces(job)))]

    def _worth_helping(self) -> _StartedJob[Job] | None:
        """Return the job that would take longest. On average, its engines are half through with their pieces."""
        if not self._unfinished or not self._paces.all.answer.count:
            return None
        piece = self._paces.all.answer.mean

        def seconds(started: _StartedJob[Job]) -> float:
            return (len(started.left) + 0.5) * piece / len(started.engines)

        longest = max(self._unfinished, key=seconds)
        return longest if seconds(longest) > self.switch_seconds + piece else None
