"""Process trees: their memory, and killing them."""

import os
import signal
import time
from contextlib import suppress
from glob import iglob

import psutil

_KILL_TIMEOUT = 1.0  # seconds to go on killing processes that keep starting others


def descendants(pid: int) -> list[int]:
    """Return the ids of all descendants of a process, including zombies and, for a subreaper, orphans."""
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):  # not Linux
        with suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        return []
    family = [pid]
    for parent in family:  # which grows during the loop
        for path in iglob(f"/proc/{parent}/task/*/children"):
            with suppress(OSError), open(path) as children:
                family += map(int, children.read().split())
    return family[1:]


def memory_exceeds(pid: int, limit: float) -> bool:
    """Whether a process and its descendants hold more than ``limit`` bytes of memory, swapped out or not.

    Shared memory counts once, so that forking costs nothing. That sum is slow and computed only if the resident
    sizes, which count shared memory once for each process, exceed the limit.
    """
    resident = precise = 0
    family = []
    for member in (pid, *descendants(pid)):
        with suppress(psutil.Error):
            family.append(psutil.Process(member))
            resident += family[-1].memory_info().rss
    if resident <= limit:
        return False
    for process in family:
        with suppress(psutil.Error):
            found = process.memory_full_info()
            precise += getattr(found, "pss", found.uss) + getattr(found, "swap", 0)
    return precise > limit


def kill_descendants(pid: int) -> None:
    """Kill all descendants of a process, until none still runs."""
    deadline = time.monotonic() + _KILL_TIMEOUT
    while (running := [child for child in descendants(pid) if _is_running(child)]) and time.monotonic() < deadline:
        for child in running:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        time.sleep(1e-3)


def _is_running(pid: int) -> bool:
    with suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False
