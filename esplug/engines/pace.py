"""Pace of engines: how long each takes for a piece of work, and when a piece is late. Uses no clocks."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

#: What takes so many times as long as usual, and so many seconds longer, is late. Answers of different lengths, and a
#: machine that is busy for a moment, stay below one or the other.
CLEARLY, LEAST = 2.0, 1.0


def patience(usual: float) -> float:
    """Return the seconds after which something is late that usually takes ``usual`` seconds."""
    return max(CLEARLY * usual, usual + LEAST)


@dataclass(slots=True)
class _Times:
    count: int = 0
    total: float = 0.0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1)


@dataclass(slots=True)
class Pace:
    """Seconds to switch weights and to answer, of pieces that were done."""

    switch: _Times = field(default_factory=_Times)
    answer: _Times = field(default_factory=_Times)

    def add(self, switch_seconds: float, seconds: float) -> None:
        """Note a piece; ``switch_seconds`` is 0 if the engine held the weights already."""
        if switch_seconds > 0:
            self.switch.add(switch_seconds)
        self.answer.add(seconds)


class Paces:
    """Pace of each engine, and of all together."""

    def __init__(self) -> None:
        self.all = Pace()
        self._of: defaultdict[int, Pace] = defaultdict(Pace)

    def add(self, engine: int, switch_seconds: float, seconds: float) -> None:
        """Note a piece that an engine has done."""
        for pace in (self.all, self._of[engine]):
            pace.add(switch_seconds, seconds)

    def needs(self, engine: int) -> float:
        """Return the seconds that an engine needs for a piece with new weights, cautiously; infinity if unknown."""
        if not self.all.answer.count:
            return math.inf
        own = self._of[engine]
        return max(own.switch.longest, self.all.switch.mean) + max(own.answer.longest, self.all.answer.mean)

    def until_late(self, other: int, worked: float, needs: float) -> float:
        """Return the seconds until the piece of another engine is late, so that one that ``needs`` less does it, too.

        It is late at once if its engine is known to be slow, and would still be at work when the idle one is done.

        Args:
            other: the engine that works on the piece.
            worked: seconds for which it has done so.
            needs: seconds that the idle engine needs for a piece.
        """
        pace = self._of[other]
        usual = pace.switch.mean + pace.answer.mean
        if usual >= CLEARLY * needs and usual - worked > needs + LEAST:
            return 0.0
        return patience(max(needs, usual)) - worked
