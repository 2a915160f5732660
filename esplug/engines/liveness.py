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

    def reset(self) -> None:
        """Start anew, with the actor that has just been put here."""
        self.heard, self.asked, self.ready, self.pulse = time.monotonic(), 0.0, False, None
        self.gone, self.silent_for = False, None


class LivenessMonitor:
    """Asks engines for signs of life while others wait for their work, and kills those that give none.

    Args:
        slots: of the engines.
        timeout: seconds without progress after which an engine is killed.
    """

    def __init__(self, slots: Sequence[EngineSlot], timeout: float) -> None:
        self._slots, self._timeout = slots, timeout
        self._interval = min(30.0, timeout / 10)  # between signs of life, in seconds
        self._listened = time.monotonic()

    def wait(self, refs: list[Any]) -> Any:
        """Return the first of ``refs`` that is done. That of an engine that is killed is done, with an error."""
        import ray

        while True:
            now = time.monotonic()
            unheard, self._listened = now - self._listened, now
            if unheard > 2 * self._interval:  # we were busy or stopped ourselves
                for slot in self._slots:
                    slot.heard = min(slot.heard + unheard, now)
            pulses = {slot.pulse: slot for slot in self._slots if slot.pulse is not None}
            done, _ = ray.wait([*refs, *pulses], num_returns=1, timeout=self._interval)
            if done and done[0] not in pulses:
                return done[0]
            for ref in done:
                self._hear(pulses[ref])
            for slot in self._slots:
                self._listen(slot)

    def _hear(self, slot: EngineSlot) -> None:
        """Note a sign of life: when the engine last got on with its work."""
        import ray

        try:
            slot.heard = time.monotonic() - ray.get(slot.pulse)
        except ray.exceptions.ActorDiedError:
            slot.gone = True
        except ray.exceptions.RayError:  # it may be out of reach for a moment
            pass
        slot.pulse = None

    def _listen(self, slot: EngineSlot) -> None:
        """Ask an engine for a sign of life, and kill it if it has not given one for too long."""
        import ray

        if slot.gone or slot.silent_for:
            return
        limit = self._timeout if slot.ready else max(self._timeout, START_TIMEOUT)
        if time.monotonic() - slot.heard > limit:
            slot.silent_for = limit
            ray.kill(slot.actor)
        elif slot.pulse is None and time.monotonic() - max(slot.heard, slot.asked) > self._interval:
            slot.asked = time.monotonic()
            slot.pulse = slot.actor.pulse.options(concurrency_group="pulse").remote()
