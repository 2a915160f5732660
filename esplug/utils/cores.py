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


def slow_at_16_bits() -> bool:
    """Whether vLLM computes in bfloat16 and float16 several times more slowly than in float32 on this CPU."""
    sets = instruction_sets()
    return "avx2" in sets and "avx512f" not in sets
