"""One process at a time writes a run's directory."""

import fcntl
import getpass
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from esplug.errors import UserError
from esplug.utils import atomic_write

FILE_NAME = "run.lock"
_PATIENCE = 0.2  # seconds in which a process that has just come says who it is, and one that only asks has gone


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder. The system lets go of it when this process ends, however it ends.

    Raises:
        UserError: another process holds it, which the message names.
        OSError: the lock file cannot be written.
    """
    path = folder / FILE_NAME
    with path.open("ab", buffering=0) as file:
        if not _take(file.fileno(), fcntl.LOCK_EX):
            time.sleep(_PATIENCE)
            if not _take(file.fileno(), fcntl.LOCK_EX):
                raise UserError(f"{folder}: {_described(_owner(path))}")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "user": _user(), "since": time.time()}
        with atomic_write.named(path):
            file.truncate(0)
            file.write(json.dumps(owner).encode())
        yield


def holder(folder: Path) -> str | None:
    """Say who holds a folder; ``None`` if nobody does, as far as can be seen."""
    if not _owner(folder / FILE_NAME):
        time.sleep(_PATIENCE)
    owner = _owner(folder / FILE_NAME)
    return _described(owner) if owner and _is_taken(folder) else None


def is_abandoned(folder: Path) -> bool:
    """Whether a process of this machine has held a folder, and has ended."""
    return _owner(folder / FILE_NAME).get("host") == socket.gethostname() and not _is_taken(folder)


def is_held(folder: Path) -> bool | None:
    """Whether a process holds a folder now, ``None`` if that cannot be told; never waits."""
    try:
        _ask(folder)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:  # the file cannot be read, or its file system has no locks
        return None
    return False


def _take(descriptor: int, kind: int) -> bool:
    """Lock a file if nobody else has; where the file system has no locks, nobody has."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _is_taken(folder: Path) -> bool:
    """Whether a folder, which has a lock file, is held; unknown is taken."""
    try:
        _ask(folder)
    except OSError:
        return True
    return False


def _ask(folder: Path) -> None:
    """Share the lock for a moment; raises ``BlockingIOError`` where a process holds it."""
    with (folder / FILE_NAME).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _owner(path: Path) -> Mapping[str, Any]:
    """Read what the present or last owner wrote; empty if there is none, or it has just come."""
    with suppress(OSError, ValueError):
        owner = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(owner, dict):
            return owner
    return {}


def _described(owner: Mapping[str, Any]) -> str:
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
        pid, host = int(owner["pid"]), owner["host"]
        return (
            f"in use by process {pid} of {owner['user']} on {host} since {since}; wait until it has ended, or end it "
            f"there with `kill {pid}`"
        )
    except (ValueError, KeyError, TypeError):
        return "in use by another process; wait until it has ended"


def _user() -> str:
    with suppress(KeyError, OSError):  # a container may have no name for its user
        return getpass.getuser()
    return str(os.getuid())
