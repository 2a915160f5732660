"""Liveness monitor: kills engines that stop making progress."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Least time for an engine to start, in seconds, whatever the timeout.
START_TIMEOUT = 300.0
_LOOK_EVERY = 0.02  # seconds between two looks at something else that the caller waits for


@dataclass(slots=True, eq=False)
class EngineSlot:
    """An engine's place in the pool. A new actor takes it when the engine is replaced."""

    index: int  # of the slot in the pool
    log: Path  # of the engines in the slot
    placement: Any = None  # Ray's placement group for an engine
    actor: Any = None  # the engine now in the slot
    node: str = ""  # Ray's id of the node on which the last engine is or was
    address: str = ""  # of that node
    cores: tuple[int, int] = (0, 1)  # index of its share of its machine's cores, and the number of equal shares
    kv_cache: int | None = None  # bytes of the KV cache; None lets vLLM choose
    idle_since: float = 0.0  # when it last finished a piece of work, on the monotonic clock
    heard: float = 0.0  # when it last made progress, on the monotonic clock
    asked: float = 0.0  # when its pulse was last asked for, likewise
    ready: bool = False  # whether it has started
    pulse: Any = None  # reference to its answer to the last question, if that is outstanding
    gone: bool = False  # whether it no longer answers; the caller who waits for its work gets the error
    absent: bool = False  # whether it was lost with its node, and no other has had room for it
    late: bool = False  # whether the others have gone on without it, because it takes too long
    said_late: bool = False  # whether that its work takes too long has been said
    raised: str = ""  # the method that the slot's last engine raised an error in
    silent_for: float | None = None  # seconds without progress for which it was killed

    def reset(self) -> None:
        """Forget the slot's last actor, once a new one has been put in."""
        self.heard, self.asked, self.ready, self.pulse = time.monotonic(), 0.0, False, None
        self.gone, self.late, self.silent_for = False, False, None


class LivenessMonitor:
    """Asks engines for their pulse while the caller waits for work; kills those silent for ``timeout`` seconds.

    An engine that starts may take longer.
    """

    def __init__(self, slots: Sequence[EngineSlot], timeout: float) -> None:
        self._slots, self._timeout = slots, timeout
        self.start_timeout = max(timeout, START_TIMEOUT)
        self._interval = min(30.0, timeout / 10)  # seconds between two questions
        self._listened = time.monotonic()

    def wait(self, refs: list[Any], until: Callable[[], bool] | None = None) -> Any:
        """Return the first of ``refs`` that is ready; ``None`` if ``until`` returns true before.

        A killed engine's reference is ready, with an error. ``refs`` may be empty if there is ``until``.
        """
        import ray

        interval = self._interval if until is None else _LOOK_EVERY
        while until is None or not until():
            now = time.monotonic()
            unheard, self._listened = now - self._listened, now
            if unheard > 2 * self._interval:  # the driver was busy or stopped, so do not blame the engines
                for slot in self._slots:
                    slot.heard = min(slot.heard + unheard, now)
            pulses = {slot.pulse: slot for slot in self._slots if slot.pulse is not None}
            done: list[Any] = []
            if refs or pulses:
                done, _ = ray.wait([*refs, *pulses], num_returns=1, timeout=interval)
            else:
                time.sleep(interval)
            if done and done[0] not in pulses:
                return done[0]
            for ref in done:
                self._receive(pulses[ref])
            for slot in self._slots:
                self._check(slot)
        return None

    def _receive(self, slot: EngineSlot) -> None:
        """Note when the engine last made progress, from its pulse."""
        import ray

        try:
            slot.heard = time.monotonic() - ray.get(slot.pulse)
        except ray.exceptions.ActorDiedError:
            slot.gone = True
        except ray.exceptions.RayError:  # it may be unreachable for a moment
            pass
        slot.pulse = None

    def _check(self, slot: EngineSlot) -> None:
        """Kill an engine that has been silent for too long; ask for its pulse if that is due."""
        import ray

        if slot.gone or slot.silent_for:
            return
        limit = self._timeout if slot.ready or slot.late else self.start_timeout
        if time.monotonic() - slot.heard > limit:
            slot.silent_for = limit
            ray.kill(slot.actor)
        elif slot.pulse is None and time.monotonic() - max(slot.heard, slot.asked) > self._interval:
            slot.asked = time.monotonic()
            slot.pulse = slot.actor.pulse.options(concurrency_group="pulse").remote()
