"""Waiting for engines while noticing those that make no progress."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: An engine that has not started yet gets at least this long for a sign of life, in seconds.
START_TIMEOUT = 300.0


@dataclass(slots=True, eq=False)
class EngineSlot:
    """An engine's place: who sits there, on which of its machine's cores, when it was last heard of and asked."""

    index: int
    actor: Any
    cores: tuple[int, int] = (0, 1)  # which of how many equal shares of the machine's
    kv_cache: int | None = None
    heard: float = 0.0
    asked: float = 0.0
    ready: bool = False
    pulse: Any = None
    gone: bool = False  # it answers no more, as whoever waits for its work will learn
    silent_for: float | None = None  # seconds after which it was killed

    def begin(self) -> None:
        """Start anew, with the actor that has just been put here."""
        self.heard, self.asked, self.ready, self.pulse = time.monotonic(), 0.0, False, None
        self.gone, self.silent_for = False, None


class LivenessMonitor:
    """Asks engines for signs of life while others wait for their work, and kills those that give none.

    Args:
        seats: of the engines.
        timeout: seconds without progress after which an engine is killed.
    """

    def __init__(self, seats: Sequence[EngineSlot], timeout: float) -> None:
        self._seats, self._timeout = seats, timeout
        self._interval = min(30.0, timeout / 10)  # between signs of life, in seconds
        self._listened = time.monotonic()

    def wait(self, refs: list[Any]) -> Any:
        """Return the first of ``refs`` that is done. That of an engine that is killed is done, with an error."""
        import ray

        while True:
            now = time.monotonic()
            unheard, self._listened = now - self._listened, now
            if unheard > 2 * self._interval:  # we were busy or stopped ourselves
                for seat in self._seats:
                    seat.heard = min(seat.heard + unheard, now)
            pulses = {seat.pulse: seat for seat in self._seats if seat.pulse is not None}
            done, _ = ray.wait([*refs, *pulses], num_returns=1, timeout=self._interval)
            if done and done[0] not in pulses:
                return done[0]
            for ref in done:
                self._hear(pulses[ref])
            for seat in self._seats:
                self._listen(seat)

    def _hear(self, seat: EngineSlot) -> None:
        """Note a sign of life: when the engine last got on with its work."""
        import ray

        try:
            seat.heard = time.monotonic() - ray.get(seat.pulse)
        except ray.exceptions.ActorDiedError:
            seat.gone = True
        except ray.exceptions.RayError:  # it may be out of reach for a moment
            pass
        seat.pulse = None

    def _listen(self, seat: EngineSlot) -> None:
        """Ask an engine for a sign of life, and kill it if it has not given one for too long."""
        import ray

        if seat.gone or seat.silent_for:
            return
        limit = self._timeout if seat.ready else max(self._timeout, START_TIMEOUT)
        if time.monotonic() - seat.heard > limit:
            seat.silent_for = limit
            ray.kill(seat.actor)
        elif seat.pulse is None and time.monotonic() - max(seat.heard, seat.asked) > self._interval:
            seat.asked = time.monotonic()
            seat.pulse = seat.actor.pulse.options(concurrency_group="pulse").remote()
