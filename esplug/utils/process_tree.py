"""A process and all that it has started: how much memory they hold, and how they end."""

import os
import signal
import time
from contextlib import suppress
from glob import iglob

import psutil

_PATIENCE = 1.0  # seconds in which processes that go on starting others must have been outrun


def descendants(pid: int) -> list[int]:
    """Return the ids of the processes below one, zombies too. Of a subreaper that includes orphans."""
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):  # not Linux: look at all processes there are
        with suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        return []
    family = [pid]
    for parent in family:  # which grows meanwhile
        for path in iglob(f"/proc/{parent}/task/*/children"):
            with suppress(OSError), open(path) as children:
                family += map(int, children.read().split())
    return family[1:]


def memory_exceeds(pid: int, limit: float) -> bool:
    """Whether a process and its descendants hold more than ``limit`` bytes of memory, swapped out or not.

    Memory that they share counts once, so that forking costs nothing. The precise sum is slow, and taken only
    where the simple one, which counts shared memory again and again, is over the limit.
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
    """Kill all below a process, until nothing is left there that still runs."""
    deadline = time.monotonic() + _PATIENCE
    while (running := [child for child in descendants(pid) if _is_running(child)]) and time.monotonic() < deadline:
        for child in running:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        time.sleep(1e-3)


def _is_running(pid: int) -> bool:
    with suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False
