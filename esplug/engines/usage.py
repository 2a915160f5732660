"""Usage of hardware by an engine: memory of its processes, and memory and utilization of its GPUs.

It is information for people. Whatever cannot be measured is left out, and no error reaches the run.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import psutil

from esplug.utils.process_tree import descendants

_INTERVAL = 1.0  # seconds between two readings of a GPU; NVML averages over up to a second itself
_KEPT = 3600  # readings of a GPU


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """Usage of a GPU by all processes.

    Attributes:
        memory: largest memory in use, in bytes.
        utilization: percentage of the time in which a kernel ran; ``None`` if the driver does not tell.
    """

    memory: int
    utilization: float | None


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """Resident memory of an engine's processes in bytes, and its GPUs by UUID."""

    host_memory: int
    gpus: dict[str, GpuUsage]


@dataclass(frozen=True, slots=True)
class _Reading:
    """One reading of a GPU, on the monotonic clock."""

    time: float
    memory: int
    utilization: float | None


def resident_memory(pids: Iterable[int]) -> int:
    """Return the bytes of memory that processes hold. Memory that they share counts for each of them."""
    total = 0
    for pid in pids:
        with suppress(psutil.Error):
            total += psutil.Process(pid).memory_info().rss
    return total


class UsageMeter:
    """Measures this process, its descendants and its GPUs.

    A daemon thread reads the GPUs every second. Without GPUs or NVML, which may be missing, too old or forbidden and
    raises many types of errors, there is no thread.

    Args:
        gpus: indices or UUIDs of the GPUs, as in ``CUDA_VISIBLE_DEVICES``; empty for none.
    """

    def __init__(self, gpus: str) -> None:
        self._readings: dict[str, deque[_Reading]] = {}
        if gpus:
            with suppress(Exception):
                import pynvml

                pynvml.nvmlInit()
                handles = {_uuid(pynvml, handle): handle for handle in _handles(pynvml, gpus)}
                self._readings = {uuid: deque(maxlen=_KEPT) for uuid in handles}
                threading.Thread(target=self._watch, args=(pynvml, handles), daemon=True).start()

    def usage(self, seconds: float) -> EngineUsage:
        """Return the usage in the last ``seconds``: at least of the last reading, at most of the last hour."""
        since, gpus = time.monotonic() - seconds, {}
        for uuid, readings in self._readings.items():
            known = list(readings)
            recent = [reading for reading in known if reading.time >= since] or known[-1:]
            shares = [reading.utilization for reading in recent if reading.utilization is not None]
            if recent:
                gpus[uuid] = GpuUsage(max(reading.memory for reading in recent), fmean(shares) if shares else None)
        return EngineUsage(resident_memory([os.getpid(), *descendants(os.getpid())]), gpus)

    def _watch(self, pynvml: Any, handles: dict[str, Any]) -> None:
        while True:
            for uuid, gpu in handles.items():
                with suppress(Exception):
                    memory, utilization = int(pynvml.nvmlDeviceGetMemoryInfo(gpu).used), None
                    with suppress(Exception):  # such as a MIG instance, which has no utilization
                        utilization = float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
                    self._readings[uuid].append(_Reading(time.monotonic(), memory, utilization))
            time.sleep(_INTERVAL)


def _handles(pynvml: Any, gpus: str) -> Iterator[Any]:
    """Return NVML's handles of GPUs that are named by index or UUID."""
    for name in map(str.strip, gpus.split(",")):
        if name.isdigit():
            yield pynvml.nvmlDeviceGetHandleByIndex(int(name))
        else:
            yield pynvml.nvmlDeviceGetHandleByUUID(name)


def _uuid(pynvml: Any, gpu: Any) -> str:
    uuid: str | bytes = pynvml.nvmlDeviceGetUUID(gpu)
    return uuid.decode() if isinstance(uuid, bytes) else uuid  # old versions of pynvml return bytes
