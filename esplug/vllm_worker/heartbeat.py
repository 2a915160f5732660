"""Heartbeat of an engine: the time of its last progress, shared by all its processes."""

import mmap
import os
import struct
import time
from typing import Any

VLLM_INTERNALS = {"vllm.v1.engine.llm_engine:LLMEngine": "step()", "vllm.entrypoints.llm:LLM": "llm_engine"}

_TIME = struct.Struct("d")  # written atomically


class Heartbeat:
    """A time in memory that the processes of one engine share. The first one creates it, at rest.

    Other processes of the same user and machine can open it by its ``place``, a path, while its creator lives.
    """

    def __init__(self, place: str | None = None) -> None:
        if place is None:
            descriptor = os.memfd_create("esplug-heartbeat")
            os.ftruncate(descriptor, mmap.PAGESIZE)
            place = f"/proc/{os.getpid()}/fd/{descriptor}"
        else:
            descriptor = os.open(place, os.O_RDWR)
        self.place = place
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)

    def beat(self) -> None:
        """Record that work makes progress."""
        _TIME.pack_into(self._memory, 0, time.monotonic())

    def rest(self) -> None:
        """Record that there is no work."""
        _TIME.pack_into(self._memory, 0, 0.0)

    def age(self) -> float:
        """Return the seconds since the last beat; 0 at rest."""
        (beat,) = _TIME.unpack_from(self._memory)
        return max(0.0, time.monotonic() - beat) if beat else 0.0


def beat_every_step(llm: Any, heartbeat: Heartbeat) -> None:
    """Have vLLM's engine beat before each of its steps."""
    step = llm.llm_engine.step

    def step_with_beat() -> Any:
        heartbeat.beat()
        return step()

    llm.llm_engine.step = step_with_beat
