"""Lock on a run directory, so that only one process at a time writes to it."""

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
_WAIT = 0.2  # seconds: enough for a new holder to write who it is, and for a process that only asks to let go


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder. The operating system releases the lock when this process ends for any reason.

    Raises:
        UserError: another process, which the message names, holds the lock.
    """
    path = folder / FILE_NAME
    with path.open("ab", buffering=0) as file:
        if not _try_lock(file.fileno()):
            time.sleep(_WAIT)
            if not _try_lock(file.fileno()):
                raise UserError(f"{folder}: {_described(_owner(path))}")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "user": _user(), "since": time.time()}
        with atomic_write.named(path):
            file.truncate(0)
            file.write(json.dumps(owner).encode())
        yield


def holder(folder: Path) -> str | None:
    """Describe the process that holds a folder; ``None`` if no process is known to hold it."""
    if not _owner(folder / FILE_NAME):
        time.sleep(_WAIT)
    owner = _owner(folder / FILE_NAME)
    return _described(owner) if owner and is_held(folder) is not False else None


def is_abandoned(folder: Path) -> bool:
    """Whether a process of this machine held a folder and has ended."""
    path = folder / FILE_NAME
    return _owner(path).get("host") == socket.gethostname() and is_held(folder) is False and path.exists()


def is_held(folder: Path) -> bool | None:
    """Whether a process holds a folder now; ``None`` if unknown. Never waits."""
    try:
        with (folder / FILE_NAME).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:  # the file cannot be read, or its file system has no locks
        return None
    return False


def _try_lock(descriptor: int) -> bool:
    """Try to lock a file. On a file system without locks this always succeeds."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _owner(path: Path) -> Mapping[str, Any]:
    """Read the record of the present or last owner; empty if there is none yet."""
    with suppress(OSError, ValueError):
        owner = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(owner, dict):
            return owner
    return {}


def _described(owner: Mapping[str, Any]) -> str:
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
        pid, host = int(owner["pid"]), owner["host"]
        holds = f"in use by process {pid} of {owner['user']} on {host} since {since}"
        return f"{holds}; wait until it has ended, or end it there with `kill {pid}`"
    except (ValueError, KeyError, TypeError):
        return "in use by another process; wait until it has ended"


def _user() -> str:
    with suppress(KeyError, OSError):  # a container may have no name for its user
        return getpass.getuser()
    return str(os.getuid())
