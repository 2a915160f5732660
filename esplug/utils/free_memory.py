"""Free memory on this machine, within the limits of its container or job."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes of free memory; ``proc`` and ``sys`` are in ``root``."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_free_in_groups(root)])


def _free_in_groups(root: Path) -> Iterator[int]:
    """Yield the free bytes of each control group (v1 or v2) of this process that has a limit."""
    with suppress(OSError):  # not Linux
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                mount = root / "sys/fs/cgroup/memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            group = PurePosixPath(path.lstrip("/"))
            for each in (group, *group.parents):  # inside a container, its own group is the root
                with suppress(OSError, ValueError):  # no such group, or no limit
                    yield _free_in(mount / each, *names)


def _free_in(group: Path, limit: str, used: str, cached: str) -> int:
    """Return the free bytes of a group. Cached files count as free, since the kernel evicts them."""
    most, taken = int((group / limit).read_text()), int((group / used).read_text())
    counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return max(0, most - taken + int(counts.get(cached, 0)))
