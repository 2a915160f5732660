"""Work pool: runs kernels in threads on a CPU, and in the calling thread for a GPU."""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkPool:
    """Runs functions that start kernels, and calls ``beat`` before each, from any thread.

    On a CPU, ``threads`` run them, pinned to ``cores`` if given. The caller starts the kernels of a GPU itself, so that
    they keep the order of its own. Raises ``ValueError`` if ``threads`` is not positive.
    """

    def __init__(
        self, device: torch.device, threads: int, cores: Sequence[int] | None, beat: Callable[[], None]
    ) -> None:
        self._beat = beat
        on_cpu = device.type == "cpu"
        self._executor = ThreadPoolExecutor(threads, "esplug-noise", _pin, (cores,)) if on_cpu else _InlineExecutor()

    def submit(self, work: Callable[[Item], Result], item: Item) -> Future[Result]:
        """Start ``work(item)``."""
        return self._executor.submit(self._run, work, item)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return ``work(item)`` of every item."""
        return list(self._executor.map(functools.partial(self._run, work), items))

    def _run(self, work: Callable[[Item], Result], item: Item) -> Result:
        self._beat()
        return work(item)


class _InlineExecutor(Executor):
    """Runs work at once, in the calling thread."""

    def submit(self, work: Callable[..., Result], /, *arguments: Any, **named: Any) -> Future[Result]:
        future: Future[Result] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


def _pin(cores: Sequence[int] | None) -> None:
    """Pin this thread to ``cores``, where the system can."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
