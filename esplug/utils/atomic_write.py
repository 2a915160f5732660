"""Atomic writes: neither a crash nor a full disk leaves a partial file or record."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Write a file atomically: after a crash or an ``OSError``, either the old file exists or the new one."""
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
    """Append to a file, and wait until the data are on disk. After an ``OSError``, none of them are in the file."""
    with named(path), path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)  # so that the next append does not continue a partial line
            raise


def sync(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Add the file to every ``OSError``, since that of a full disk names none."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
