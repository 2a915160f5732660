"""Which engine does what next. There are no engines, clocks or Ray in here, so that a simulation can drive it too."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Job = TypeVar("Job")


@dataclass(slots=True, eq=False)
class _Begun(Generic[Job]):
    """A job of which an engine has begun."""

    job: Job
    left: list[int]  # pieces that no engine has taken, the next one last
    engines: set[int] = field(default_factory=set)  # those that hold its weights and come back for more


@dataclass(frozen=True, slots=True)
class Piece(Generic[Job]):
    """Piece ``number`` of a job: what an engine does in one go."""

    job: Job
    number: int
    of: _Begun[Job]


class WorkScheduler(Generic[Job]):
    """Hands out the pieces of jobs, each to whichever engine asks.

    Switching an engine to a job's weights takes time. So an engine that has begun a job goes on with it until no
    piece is left, then begins the next. Towards the end, when there is none to begin, it helps with the job that would
    take longest, if the help comes before the others are through: a job's pieces give the same answers wherever they
    are done.

    Args:
        jobs: taken one by one, as engines ask.
        pieces: how many pieces a job has; at least 1.
    """

    def __init__(self, jobs: Iterable[Job], pieces: Callable[[Job], int]) -> None:
        self._jobs, self._pieces = iter(jobs), pieces
        self._begun: list[_Begun[Job]] = []  # of which pieces are left
        self._at: dict[int, _Begun[Job]] = {}
        self._done = self._switches = 0
        self._working = self._switching = 0.0  # seconds that these took

    def take(self, engine: int) -> Piece[Job] | None:
        """Return what an idle engine should do now; ``None`` if there is nothing for it, at least for now."""
        at = self._at.get(engine)
        if at is None or not at.left:
            self._leave(engine)
            at = self._abandoned() or self._next() or self._worth_helping()
            if at is None:
                return None
            at.engines.add(engine)
            self._at[engine] = at
        number = at.left.pop()
        if not at.left:
            self._begun.remove(at)
        return Piece(at.job, number, at)

    def done(self, switch_seconds: float, seconds: float) -> None:
        """Note how long a piece took: to switch weights, 0 where that was not needed, and then to answer."""
        self._done += 1
        self._switches += switch_seconds > 0
        self._switching += switch_seconds
        self._working += seconds

    def requeue(self, engine: int, piece: Piece[Job]) -> None:
        """Take back a piece that an engine could not do, and which holds no job's weights any more."""
        self._leave(engine)
        if not piece.of.left:
            self._begun.append(piece.of)
        piece.of.left.append(piece.number)

    def _leave(self, engine: int) -> None:
        at = self._at.pop(engine, None)
        if at is not None:
            at.engines.remove(engine)

    def _abandoned(self) -> _Begun[Job] | None:
        return next((begun for begun in self._begun if not begun.engines), None)

    def _next(self) -> _Begun[Job] | None:
        for job in self._jobs:
            self._begun.append(_Begun(job, list(reversed(range(self._pieces(job))))))
            return self._begun[-1]
        return None

    def _worth_helping(self) -> _Begun[Job] | None:
        """Find the job that would take longest; its engines are, on average, half through with their pieces."""
        if not self._begun or not self._done:
            return None
        piece, switch = self._working / self._done, self._switching / max(self._switches, 1)

        def seconds(begun: _Begun[Job]) -> float:
            return (len(begun.left) + 0.5) * piece / len(begun.engines)

        longest = max(self._begun, key=seconds)
        return longest if seconds(longest) > switch + piece else None
