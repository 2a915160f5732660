"""When an engine last got on with its work, wherever in its processes that is done."""

import mmap
import os
import struct
import time

_TIME = struct.Struct("d")  # which is written in one piece


class Heartbeat:
    """A time in memory that the processes of one engine share.

    Args:
        place: of another process's heartbeat to share; ``None`` makes a new one, at rest.

    Attributes:
        place: a path under which other processes of this user and machine find it, while the first one lives.
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
        """Note that work goes on."""
        _TIME.pack_into(self._memory, 0, time.monotonic())

    def rest(self) -> None:
        """Note that there is no work."""
        _TIME.pack_into(self._memory, 0, 0.0)

    def age(self) -> float:
        """Return the seconds since the last beat; 0 at rest."""
        (beat,) = _TIME.unpack_from(self._memory)
        return max(0.0, time.monotonic() - beat) if beat else 0.0
