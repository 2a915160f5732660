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

from esplug.errors import UserError

FILE_NAME = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's directory. The system lets go of it when this process ends, however it ends.

    Raises:
        UserError: another process holds it, which the message names.
    """
    with (folder / FILE_NAME).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.2)  # the other may have come this moment, and say in the next who it is
            file.seek(0)
            raise UserError(f"{folder}: {_owner(file.read())}") from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "user": _user(), "since": time.time()}, file)
        file.flush()
        yield


def _owner(content: str) -> str:
    try:
        owner = json.loads(content)
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
