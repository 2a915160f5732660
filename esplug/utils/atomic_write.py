"""Writing so that neither a crash nor a full disk leaves half of something behind."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Write a file in one step: whenever this process or the machine ends, the old file is there or the new one.

    Raises:
        OSError: it could not be written, and names the file; the old one stays.
    """
    part = path.with_name(path.name + ".part")
    with named(path):
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync(path.parent)


def append(path: Path, data: bytes) -> None:
    """Append to a file, and wait until it is on the disk.

    Raises:
        OSError: it could not be written whole, and names the file; nothing of it stays.
    """
    with named(path), path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)  # what is appended next must not continue half a line
            raise


def sync(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Have an ``OSError``, which knows no file where the disk is full, name this one."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
