"""Shipping between the driver's machine and nodes: a model to nodes that lack it, weights from an engine's node."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from esplug.checkpoints.folders import files_hash
from esplug.engines.nodes import addresses
from esplug.errors import RunError, UserError
from esplug.utils.console import say
from esplug.utils.ray_nodes import on_node
from esplug.utils.text import one_line

_CHUNK = 32 * 2**20  # bytes that travel at a time


class Receiver:
    """Writes a shipped model on its node, to a cache folder named by the hash of its files."""

    def begin(self, digest: str, size: int) -> str:
        """Prepare for a model. Returns its folder if the node has it from before, or nothing.

        Raises:
            OSError: there is no room for ``size`` bytes.
        """
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esplug" / "models"
        self._target, self._part = cache / digest, cache / f".{digest}.{uuid4().hex}"
        for left in cache.glob(".*"):
            _remove_unless_in_use(left)
        if self._target.is_dir():
            return str(self._target)
        self._part.mkdir(parents=True)
        self._lock = _lock(self._part)
        free = shutil.disk_usage(self._part).free
        if free < size:
            self.discard()
            raise OSError(f"{cache} has room for {free / 1e9:.1f} GB, and the model takes {size / 1e9:.1f} GB")
        return ""

    def write(self, name: str, chunk: bytes) -> None:
        """Append to a file of the model."""
        with (self._part / name).open("ab") as file:
            file.write(chunk)

    def finish(self, digest: str) -> str:
        """Check the files' hash and return the model's folder.

        Raises:
            OSError: the files are not those that were sent.
        """
        if model_hash(self._part) != digest:
            self.discard()
            raise OSError("the files that arrived are not those that were sent")
        try:
            self._part.rename(self._target)
        except OSError:  # another run has just brought it
            self.discard()
        return str(self._target)

    def discard(self) -> None:
        """Remove what has arrived."""
        shutil.rmtree(self._part, ignore_errors=True)


def ship_model(model: Path, nodes: Sequence[str]) -> dict[str, str]:
    """Copy a model to nodes that lack it. Returns the folder on each node.

    Raises:
        UserError: a node has no room for it, or it did not arrive whole.
    """
    import ray

    folders, digest, known = {}, model_hash(model), addresses()
    size = sum(file.stat().st_size for file in _files(model))
    for node in nodes:
        receiver = on_node(node, Receiver).remote()
        try:
            folders[node] = ray.get(receiver.begin.remote(digest, size))
            if not folders[node]:
                say(f"copying {model.name} ({size / 1e9:.1f} GB) to node {known[node]}")
                _send(receiver, model)
                folders[node] = ray.get(receiver.finish.remote(digest))
        except ray.exceptions.RayError as error:
            why = one_line(getattr(error, "cause", None) or error)
            raise UserError(f"--ship-model: node {known[node]}: {why}; make room or copy {model} there") from error
        finally:
            ray.kill(receiver)
    return folders


def _send(receiver: Any, model: Path) -> None:
    """Send a model's files, with at most two chunks on their way."""
    import ray

    on_their_way: list[Any] = []
    for file in _files(model):
        for chunk in _chunks(file):
            on_their_way.append(receiver.write.remote(file.name, chunk))
            if len(on_their_way) > 1:
                ray.get(on_their_way.pop(0))
    ray.get(on_their_way)


def model_hash(model: Path) -> str:
    """Return the hash of the names and contents of a model's files."""
    return files_hash(model, [file.name for file in _files(model)]).hex()


def _lock(part: Path) -> int:
    """Lock an unfinished folder until this process ends. Returns the lock's file descriptor.

    Raises:
        OSError: another process is writing to it.
    """
    lock = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _remove_unless_in_use(part: Path) -> None:
    """Remove an unfinished folder whose run has died."""
    with suppress(OSError):
        lock = _lock(part)
        shutil.rmtree(part, ignore_errors=True)
        os.close(lock)


def _files(model: Path) -> list[Path]:
    return sorted(file for file in model.iterdir() if file.is_file() and not file.name.startswith("."))


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while True:
            chunk = source.read(_CHUNK)
            if not chunk and source.tell():
                return
            yield chunk
            if not chunk:
                return


def fetch(get: Callable[[Any], Any], actor: Any, folder: str, target: Path) -> None:
    """Copy the files that an engine wrote to ``folder`` on its node to ``target`` here, and remove them there.

    ``get`` waits for a reference's value.

    Raises:
        OSError: they cannot be written here.
        RunError: a file has not arrived whole.
    """
    try:
        for name, size in get(actor.files.remote(folder)):
            with (target / name).open("wb") as file:
                starts = range(0, size, _CHUNK)
                ahead = [actor.read.remote(folder, name, start, _CHUNK) for start in starts[:1]]
                for number in range(len(starts)):
                    if number + 1 < len(starts):
                        ahead.append(actor.read.remote(folder, name, starts[number + 1], _CHUNK))
                    file.write(get(ahead.pop(0)))
                if file.tell() != size:
                    raise RunError(f"{target / name}: {file.tell()} of {size} bytes have come from the engine's node")
    finally:
        actor.remove.remote(folder)
