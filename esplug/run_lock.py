"""One process at a time writes a run's directory."""

import fcntl
import getpass
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from esplug import durable
from esplug.errors import UserError

FILE_NAME = "run.lock"
_PATIENCE = 0.2  # seconds


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's directory. The system lets go of it when this process ends, however it ends.

    Raises:
        UserError: another process holds it, which the message names.
        OSError: the disk is full.
    """
    with (folder / FILE_NAME).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: {_owner(file)}") from None
        except OSError:  # a file system without locks
            pass
        with durable.named(folder / FILE_NAME):
            file.truncate(0)
            json.dump({"pid": os.getpid(), "host": socket.gethostname(), "user": _user(), "since": time.time()}, file)
            file.flush()
        yield


def holder(folder: Path) -> str | None:
    """Say who holds a run's directory; ``None`` if nobody does."""
    path = folder / FILE_NAME
    if not path.exists():
        time.sleep(_PATIENCE)  # its owner may have made it this moment
    with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _owner(file)
        except OSError:
            pass
    return None


def _owner(file: TextIO) -> str:
    time.sleep(_PATIENCE)  # it may have come this moment, and say in the next who it is
    file.seek(0)
    try:
        owner = json.loads(file.read())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
        pid, host = int(owner["pid"]), owner["host"]
        return (
            f"in use by process {pid} of {owner['user']} on {host} since {since}; wait until it has ended, or end it "
            f"there with `kill {pid}`"
        )
    except (ValueError, KeyError, TypeError):  # it has just come
        return "in use by another process; wait until it has ended"


def _user() -> str:
    with suppress(KeyError, OSError):  # a container may have no name for its user
        return getpass.getuser()
    return str(os.getuid())
