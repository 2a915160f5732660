"""The CPU: cores that this process may use, its instruction sets; and the unit of memory."""

import os
from contextlib import suppress
from pathlib import Path

GIB = 2**30


def usable_cores() -> list[int]:
    """Return the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def instruction_sets() -> frozenset[str]:
    """Return the CPU's instruction sets as Linux names them, such as ``avx2``; none on other systems."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return frozenset(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())
    return frozenset()


def slow_on_this_cpu(dtype: str) -> bool:
    """Whether vLLM computes in this type, of 16 bits or ``auto``, several times more slowly here than in float32."""
    sets = instruction_sets()
    return dtype != "float32" and "avx2" in sets and "avx512f" not in sets
