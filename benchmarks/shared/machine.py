"""Description of the machine for the benchmarks' tables."""

import platform
from pathlib import Path


def processor() -> str:
    """Return the processor's name, as reported by the system."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
